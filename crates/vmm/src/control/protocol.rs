//! What is said on a control socket: one JSON object a line, in UTF-8, at most [`MAX_LINE`] bytes.
//!
//! ```text
//! > {"version":1,"id":7,"command":"switch-engine","engine":"software"}
//! < {"version":1,"id":7,"result":{"engine":"software"}}
//! > {"version":1,"id":8,"command":"fly"}
//! < {"version":1,"id":8,"error":{"kind":"bad-request","message":"unknown variant `fly`, expected …"}}
//! < {"version":1,"event":"paused"}
//! ```
//!
//! Each request gets one reply with its `id` (`null` where none could be read), in the order of the requests. Events
//! come between replies, to clients that sent the command `events`. A reader ignores keys and events it does not
//! know; a request with unknown keys is refused.

use super::disk_commands::{DiskCommand, DiskJob, JobCommand};
use block::Limits;
use engine::EngineKind;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::fmt;

/// The version spoken here.
pub const VERSION: u64 = 1;
/// Longest line, without its end.
pub const MAX_LINE: usize = 64 << 10;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// The machine's [`crate::stats::Status`].
    Status {},
    /// Let the guest stand.
    Pause {},
    /// Let it go on.
    Resume {},
    /// Press the power button.
    PowerButton {},
    /// Press the reset button.
    Reset {},
    /// End the machine at once.
    Stop {},
    /// The counters, [`crate::stats::Stats`].
    Stats {},
    /// Move the processors to another engine.
    SwitchEngine {
        /// Which.
        engine: EngineName,
    },
    /// From here on, tell this client what happens.
    Events {},
    /// The disks, a list of [`crate::disks::DiskReport`].
    Disks {},
    /// Change the limits of a disk, and of its group.
    Throttle {
        /// Its name.
        disk: String,
        /// What holds from now on; what is not stated is not limited.
        limits: Limits,
    },
    /// Something to be done with a disk.
    Disk(DiskCommand),
    /// Something to be done with a job.
    Job(JobCommand),
}

/// An engine in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// The software CPU.
    Software,
    /// KVM.
    Kvm,
}

/// Why a request has no result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub kind: RefusalKind,
    /// For people.
    pub message: String,
}

/// Kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// Not a JSON object, or too long; the connection ends when its lines cannot be told apart any more.
    Malformed,
    /// Another version than [`VERSION`].
    Version,
    /// No such command, or not with these keys.
    BadRequest,
    /// The machine cannot do that.
    Failed,
    /// Too many clients.
    Busy,
    /// The machine ends.
    Ending,
}

impl Refusal {
    /// A refusal.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Refusal { kind, message: message.into() }
    }
}

/// What happens to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The guest stands.
    Paused,
    /// The guest runs.
    Resumed,
    /// The power button was pressed.
    PowerButton,
    /// The machine was reset.
    Reset,
    /// The processors run on another engine.
    EngineSwitched {
        /// Which.
        engine: EngineName,
    },
    /// A request of a disk failed on the host; the machine pauses, and does it again when it resumes.
    IoError {
        /// The disk.
        disk: String,
        /// It changes the disk, or makes changes durable.
        write: bool,
        /// The host is out of space.
        no_space: bool,
        /// The error in words.
        error: String,
    },
    /// A job is ready, or ended.
    Job(DiskJob),
    /// The machine is no more; the last line.
    Ended {
        /// Why, in words.
        reason: String,
        /// The process's exit status.
        exit_status: u8,
    },
}

/// The result of a request.
pub type Reply = Result<Value, Refusal>;

/// A line to a request's `id` and command.
///
/// # Errors
/// The id, as far as one could be read, and what is wrong.
pub fn parse_request(line: &[u8]) -> Result<(Value, Command), (Value, Refusal)> {
    let malformed = |error: serde_json::Error| {
        (Value::Null, Refusal::new(RefusalKind::Malformed, format!("Not a JSON object: {error}")))
    };
    let mut object: Map<String, Value> = serde_json::from_slice(line).map_err(malformed)?;
    let id = object.remove("id").unwrap_or(Value::Null);
    if !(id.is_null() || id.is_u64() || id.is_string()) {
        let refusal = Refusal::new(RefusalKind::BadRequest, "The id is a whole number or a string");
        return Err((Value::Null, refusal));
    }
    match object.remove("version").and_then(|version| version.as_u64()) {
        Some(VERSION) => {}
        Some(other) => {
            let message = format!("Version {other} is not spoken here; version {VERSION} is");
            return Err((id, Refusal::new(RefusalKind::Version, message)));
        }
        None => {
            let message = format!("The key \"version\" is missing; it is {VERSION}");
            return Err((id, Refusal::new(RefusalKind::Version, message)));
        }
    }
    match serde_json::from_value(Value::Object(object)) {
        Ok(command) => Ok((id, command)),
        Err(error) => Err((id, Refusal::new(RefusalKind::BadRequest, error.to_string()))),
    }
}

/// A request as a line.
pub fn request_line(id: u64, command: &Command) -> String {
    line_of(json!({ "version": VERSION, "id": id }), serde_json::to_value(command))
}

/// A reply as a line.
pub fn reply_line(id: &Value, reply: &Reply) -> String {
    let body = match reply {
        Ok(result) => Ok(json!({ "result": result })),
        Err(refusal) => serde_json::to_value(refusal).map(|refusal| json!({ "error": refusal })),
    };
    line_of(json!({ "version": VERSION, "id": id }), body)
}

/// An event as a line.
pub fn event_line(event: &Event) -> String {
    line_of(json!({ "version": VERSION }), serde_json::to_value(event))
}

/// Joins two objects into a line.
fn line_of(mut head: Value, body: serde_json::Result<Value>) -> String {
    if let (Value::Object(head), Ok(Value::Object(body))) = (&mut head, body) {
        head.extend(body);
    }
    format!("{head}\n")
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineName::Software => "software",
            EngineName::Kvm => "kvm",
        })
    }
}

impl From<EngineKind> for EngineName {
    fn from(kind: EngineKind) -> Self {
        match kind {
            EngineKind::Kvm => EngineName::Kvm,
            EngineKind::Software => EngineName::Software,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(line: &str) -> (Value, RefusalKind) {
        let (id, refusal) = parse_request(line.as_bytes()).unwrap_err();
        (id, refusal.kind)
    }

    #[test]
    fn requests_are_what_the_book_says() {
        let line = r#"{"version":1,"id":7,"command":"switch-engine","engine":"kvm"}"#;
        let wanted = Command::SwitchEngine { engine: EngineName::Kvm };
        assert_eq!(parse_request(line.as_bytes()), Ok((json!(7), wanted)));
        let without_id = r#"{"command":"power-button","version":1}"#;
        assert_eq!(parse_request(without_id.as_bytes()), Ok((Value::Null, Command::PowerButton {})));
        assert_eq!(request_line(3, &Command::Pause {}), "{\"command\":\"pause\",\"id\":3,\"version\":1}\n");
    }

    #[test]
    fn wrong_requests_are_told_apart() {
        use RefusalKind::{BadRequest, Malformed, Version};
        for (line, wanted) in [
            ("", (Value::Null, Malformed)),
            ("[1]", (Value::Null, Malformed)),
            ("{\"version\":1", (Value::Null, Malformed)),
            (&"[".repeat(60_000), (Value::Null, Malformed)),
            (r#"{"id":1,"command":"pause"}"#, (json!(1), Version)),
            (r#"{"id":1,"version":2,"command":"pause"}"#, (json!(1), Version)),
            (r#"{"id":1,"version":"1","command":"pause"}"#, (json!(1), Version)),
            (r#"{"id":1,"version":1}"#, (json!(1), BadRequest)),
            (r#"{"id":1,"version":1,"command":"fly"}"#, (json!(1), BadRequest)),
            (r#"{"id":1,"version":1,"command":"pause","for":3}"#, (json!(1), BadRequest)),
            (r#"{"id":1,"version":1,"command":"switch-engine"}"#, (json!(1), BadRequest)),
            (r#"{"id":1,"version":1,"command":"switch-engine","engine":"steam"}"#, (json!(1), BadRequest)),
            (r#"{"id":[],"version":1,"command":"pause"}"#, (Value::Null, BadRequest)),
        ] {
            assert_eq!(refusal(line), wanted, "{line:.80}");
        }
        assert!(parse_request(&[0xff, 0xfe, b'\n']).is_err());
    }
}

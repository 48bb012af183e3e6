//! The login: who we are, who the target is, and how both talk then (RFC 7143, 6.3 and 13).

use crate::chap;
use crate::pdu::{FINAL, Header, IMMEDIATE, field, opcode};
use crate::text::{Keys, number, push};
use crate::uri::{Credentials, Location, Portal};
use crate::wire::{Digests, Receiver, Wire, send, wrong};
use std::io::{Error, Result};
use std::sync::Arc;

/// Longest data we take with a header, and ask for at once, in bytes.
pub(crate) const SEGMENT: usize = 256 << 10;
/// Longest sequence of data, in bytes.
const BURST: u32 = 1 << 20;
/// Data a target gets before it asks for them, in bytes.
const FIRST_BURST: u32 = 256 << 10;
/// Length of data that everybody takes unless told otherwise (RFC 7143, 13.12).
const DEFAULT_SEGMENT: usize = 8192;
/// Answers a login may take.
const ANSWERS: usize = 32;
/// Bytes of text that an answer may have.
const TEXT: usize = 64 << 10;

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;
const CONTINUE: u8 = 0x40;

/// What both sides agreed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agreement {
    pub digests: Digests,
    /// Longest data the target takes with a header, in bytes.
    pub segment: usize,
    /// Longest sequence of data, in bytes.
    pub burst: usize,
    /// Bytes of a write that go with its command.
    pub immediate: usize,
    /// `ExpStatSN` of what is sent next.
    pub expected: u32,
    /// `CmdSN` of the first command, and the last one the target takes.
    pub window: (u32, u32),
}

/// How a login ended that was not refused.
pub(crate) enum Login {
    /// The session is there.
    Done(Box<Agreement>),
    /// The target is elsewhere.
    Moved(Portal),
}

struct Dialogue<'a> {
    wire: &'a dyn Wire,
    receiver: &'a mut Receiver,
    isid: [u8; 6],
    /// `ExpStatSN`.
    expected: u32,
    window: u32,
    answers: usize,
    /// The stage that the target has agreed to leave the current one for.
    stage: u8,
}

/// An answer of a stage.
enum Said {
    Keys(Keys),
    Moved(Portal),
}

/// `CmdSN` of logins, and of the first command after them.
const FIRST_COMMAND: u32 = 1;

impl Dialogue<'_> {
    /// Says text, with the wish to go on to `next` unless it is the current stage, and hears the answer.
    fn exchange(&mut self, next: u8, text: &[u8]) -> Result<Said> {
        let mut text = text;
        let mut heard = Vec::new();
        loop {
            self.answers += 1;
            if self.answers > ANSWERS {
                return Err(wrong("the login comes to no end"));
            }
            let transit = if next == self.stage { 0 } else { FINAL | next };
            let header = Header::new(opcode::LOGIN | IMMEDIATE, transit | self.stage << 2)
                .put(field::LUN, &self.isid)
                .set(field::NUMBER, FIRST_COMMAND)
                .set(field::EXPECTED, self.expected)
                .length(text.len());
            send(self.wire, Digests::default(), &header, text)?;
            let answer = self.receiver.header()?;
            if answer.opcode() != opcode::LOGIN_RESPONSE {
                return Err(wrong("what answers a login is no answer to one; is this an iSCSI target?"));
            }
            heard.extend_from_slice(&self.receiver.data(&answer)?);
            if heard.len() > TEXT {
                return Err(wrong("the login has too much text"));
            }
            match answer.byte(field::SEQUENCE) {
                0 => {}
                1 => return moved(&heard),
                class => return Err(refusal(class, answer.byte(field::SEQUENCE + 1))),
            }
            self.expected = answer.get(field::NUMBER).wrapping_add(1);
            self.window = answer.get(field::WINDOW);
            let flags = answer.flags();
            if flags >> 2 & 3 != self.stage {
                return Err(wrong("the target's login is at another stage than ours"));
            }
            if flags & CONTINUE != 0 {
                text = &[];
                continue;
            }
            if flags & FINAL != 0 {
                if transit == 0 || flags & 3 != next {
                    return Err(wrong("the target's login goes on where ours does not"));
                }
                self.stage = next;
            }
            return Keys::parse(&heard).map(Said::Keys).map_err(|problem| wrong(&problem));
        }
    }
}

fn moved(text: &[u8]) -> Result<Said> {
    let keys = Keys::parse(text).map_err(|problem| wrong(&problem))?;
    let address = keys.need("TargetAddress").map_err(|problem| wrong(&problem))?;
    Portal::parse(address).map(Said::Moved).map_err(|problem| wrong(&problem))
}

/// RFC 7143, 11.13.5.
fn refusal(class: u8, detail: u8) -> Error {
    let problem = match (class, detail) {
        (2, 1) => "the target refuses who we are; it may want another USER%SECRET, or one at all",
        (2, 2) => "the target does not let this initiator in; its name is the URI's initiator=",
        (2, 3) => "the server has no target of this name",
        (2, 4) => "the target was removed for good",
        (2, 6) => "the target has too many connections",
        (3, 1) => "the target is out of service",
        (3, 2) => "the target has no resources left for a session",
        _ => return wrong(&format!("the target refuses the login (status {class:#04x}{detail:02x})")),
    };
    Error::new(std::io::ErrorKind::PermissionDenied, problem)
}

/// Logs in. `isid` tells our sessions apart: the same one again takes the old session's place.
pub(crate) fn login(
    wire: &Arc<dyn Wire>,
    receiver: &mut Receiver,
    location: &Location,
    isid: [u8; 6],
) -> Result<Login> {
    let mut dialogue = Dialogue {
        wire: &**wire,
        receiver,
        isid,
        expected: 0,
        window: FIRST_COMMAND,
        answers: 0,
        stage: SECURITY,
    };
    if let Some(portal) = security(&mut dialogue, location)? {
        return Ok(Login::Moved(portal));
    }
    let mut text = Vec::new();
    let offers = offers(location);
    for (key, value) in &offers {
        push(&mut text, key, value);
    }
    let mut agreed = Keys::default();
    while dialogue.stage == OPERATIONAL {
        match dialogue.exchange(FULL_FEATURE, &text)? {
            Said::Moved(portal) => return Ok(Login::Moved(portal)),
            Said::Keys(keys) => {
                text = not_understood(&keys, &offers);
                agreed.append(keys);
            }
        }
    }
    let (expected, window) = (dialogue.expected, dialogue.window);
    agreement(&agreed, location, expected, window).map(|agreement| Login::Done(Box::new(agreement)))
}

/// The stage that makes sure who both are; the portal is where the target is instead.
fn security(dialogue: &mut Dialogue<'_>, location: &Location) -> Result<Option<Portal>> {
    let mut text = Vec::new();
    push(&mut text, "InitiatorName", &crate::identity::initiator(location));
    push(&mut text, "SessionType", "Normal");
    push(&mut text, "TargetName", &location.target);
    let methods = match (&location.chap, &location.target_chap) {
        (None, _) => "None",
        // A target that need not prove who it is could be anyone.
        (Some(_), Some(_)) => "CHAP",
        (Some(_), None) => "CHAP,None",
    };
    push(&mut text, "AuthMethod", methods);
    let mut next = if location.chap.is_some() { SECURITY } else { OPERATIONAL };
    let keys = match dialogue.exchange(next, &text)? {
        Said::Moved(portal) => return Ok(Some(portal)),
        Said::Keys(keys) => keys,
    };
    match (keys.get("AuthMethod"), &location.chap) {
        (Some("CHAP"), Some(chap)) => return prove(dialogue, chap, location.target_chap.as_ref()),
        (None | Some("None"), _) if location.target_chap.is_none() => {}
        (None | Some("None"), _) => return Err(wrong("the target does not want to prove who it is")),
        (Some(method), _) => {
            let problem = format!("the target asks for {method:?}, of which it was not told that we can it");
            return Err(wrong(&problem));
        }
    }
    while dialogue.stage == SECURITY {
        next = OPERATIONAL;
        if let Said::Moved(portal) = dialogue.exchange(next, &[])? {
            return Ok(Some(portal));
        }
    }
    Ok(None)
}

fn prove(
    dialogue: &mut Dialogue<'_>,
    chap: &Credentials,
    target: Option<&Credentials>,
) -> Result<Option<Portal>> {
    let mut text = Vec::new();
    push(&mut text, "CHAP_A", chap::MD5);
    let keys = match dialogue.exchange(SECURITY, &text)? {
        Said::Moved(portal) => return Ok(Some(portal)),
        Said::Keys(keys) => keys,
    };
    let need = |key: &str| keys.need(key).map_err(|problem| wrong(&problem));
    if need("CHAP_A")? != chap::MD5 {
        return Err(wrong("the target wants CHAP with another algorithm than MD5"));
    }
    let id = number(need("CHAP_I")?).and_then(|id| u8::try_from(id).ok());
    let id = id.ok_or_else(|| wrong("the CHAP_I of the target is no byte"))?;
    let challenge = chap::decode(need("CHAP_C")?);
    let challenge = challenge.ok_or_else(|| wrong("the CHAP_C of the target is no challenge"))?;
    text.clear();
    push(&mut text, "CHAP_N", &chap.user);
    push(&mut text, "CHAP_R", &chap::encode(&chap::response(id, &chap.secret, &challenge)));
    let ours: [u8; chap::CHALLENGE] = crate::identity::random()?;
    if target.is_some() {
        push(&mut text, "CHAP_I", "1");
        push(&mut text, "CHAP_C", &chap::encode(&ours));
    }
    let keys = match dialogue.exchange(OPERATIONAL, &text)? {
        Said::Moved(portal) => return Ok(Some(portal)),
        Said::Keys(keys) => keys,
    };
    if let Some(target) = target {
        let name = keys.need("CHAP_N").map_err(|problem| wrong(&problem))?;
        let proof = keys.get("CHAP_R").and_then(chap::decode);
        if name != target.user || proof.as_deref() != Some(&chap::response(1, &target.secret, &ours)) {
            return Err(wrong("the target does not prove that it is who it should be (target_user)"));
        }
    }
    if dialogue.stage == SECURITY {
        return Err(wrong("the target does not go on after the proof"));
    }
    Ok(None)
}

/// What we want; the target's answers make it less.
fn offers(location: &Location) -> Vec<(&'static str, String)> {
    let digest = |wanted: bool| if wanted { "CRC32C" } else { "None" }.to_owned();
    vec![
        ("HeaderDigest", digest(location.header_digest)),
        ("DataDigest", digest(location.data_digest)),
        ("MaxRecvDataSegmentLength", SEGMENT.to_string()),
        ("MaxBurstLength", BURST.to_string()),
        ("FirstBurstLength", FIRST_BURST.to_string()),
        ("InitialR2T", "Yes".to_owned()),
        ("ImmediateData", "Yes".to_owned()),
        ("MaxOutstandingR2T", "1".to_owned()),
        ("MaxConnections", "1".to_owned()),
        ("ErrorRecoveryLevel", "0".to_owned()),
        ("DataPDUInOrder", "Yes".to_owned()),
        ("DataSequenceInOrder", "Yes".to_owned()),
        ("DefaultTime2Wait", "2".to_owned()),
        ("DefaultTime2Retain", "0".to_owned()),
    ]
}

/// Keys that a target says of itself, which want no answer.
const DECLARED: [&str; 3] = ["TargetAlias", "TargetAddress", "TargetPortalGroupTag"];

/// The answer to keys that were not offered.
fn not_understood(keys: &Keys, offers: &[(&str, String)]) -> Vec<u8> {
    let known = |key: &str| offers.iter().any(|(offered, _)| *offered == key) || DECLARED.contains(&key);
    let mut text = Vec::new();
    for (key, value) in keys.iter() {
        if !known(key) && value != "NotUnderstood" {
            push(&mut text, key, "NotUnderstood");
        }
    }
    text
}

fn agreement(keys: &Keys, location: &Location, expected: u32, window: u32) -> Result<Agreement> {
    let digest = |key: &str, wanted: bool| match keys.get(key) {
        None | Some("None") if !wanted => Ok(false),
        Some("CRC32C") if wanted => Ok(true),
        _ => Err(wrong(&format!("the target cannot do {key} as the URI asks"))),
    };
    let value = |key: &str, otherwise: u32, most: u32| {
        let Some(text) = keys.get(key) else { return Ok(otherwise) };
        let value = number(text).filter(|value| (512..1 << 24).contains(value));
        value
            .map(|value| value.min(most))
            .ok_or_else(|| wrong(&format!("the target's {key}={text:?} is no number from 512 to 16777215")))
    };
    // What the target did not answer is as RFC 7143, 13 has it by default.
    let burst = value("MaxBurstLength", 256 << 10, BURST)?;
    let first = value("FirstBurstLength", 64 << 10, FIRST_BURST)?.min(burst);
    let segment = value("MaxRecvDataSegmentLength", DEFAULT_SEGMENT as u32, BURST)?;
    let immediate = keys.get("ImmediateData").is_none_or(|value| value == "Yes");
    Ok(Agreement {
        digests: Digests {
            header: digest("HeaderDigest", location.header_digest)?,
            data: digest("DataDigest", location.data_digest)?,
        },
        segment: segment as usize,
        burst: burst as usize,
        immediate: if immediate { first.min(segment) as usize } else { 0 },
        expected,
        window: (FIRST_COMMAND, window),
    })
}

//! iSCSI URIs, in the form that libiscsi and QEMU use.

use crate::error::IscsiError;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The port of targets that name none (RFC 7143, 14).
const PORT: u16 = 3260;
/// Longest name of a target or an initiator, in bytes (RFC 7143, 4.2.7.1).
const NAME_MAX: usize = 223;
/// Highest number of a logical unit that flat addressing can say (SAM-5, 4.7.7).
const LUN_MAX: u16 = (1 << 14) - 1;
/// Seconds that requests wait for a target that does not answer.
const PATIENCE: u64 = 60;

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Portal {
    pub host: String,
    pub port: u16,
}

impl Portal {
    /// Reads `HOST[:PORT]`, an IPv6 address in brackets, also with the `,TAG` that follows a target's addresses.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.split_once(',').map_or(text, |(text, _)| text);
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or("the bracket of the address is not closed")?;
                (host, rest.strip_prefix(':'))
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        if host.is_empty() {
            return Err("a host is needed".to_owned());
        }
        let port = match port {
            None | Some("") => PORT,
            Some(text) => text.parse().map_err(|_| format!("port {text:?} is no number up to 65535"))?,
        };
        Ok(Portal { host: host.to_owned(), port })
    }
}

impl std::fmt::Display for Portal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let brackets = self.host.contains(':');
        let (open, close) = if brackets { ("[", "]") } else { ("", "") };
        write!(f, "{open}{}{close}:{}", self.host, self.port)
    }
}

/// A name and the secret that goes with it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub user: String,
    pub secret: Vec<u8>,
}

/// Secrets are in no message.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}%…", self.user)
    }
}

/// A logical unit of a target: `iscsi://[USER[%SECRET]@]HOST[:PORT]/TARGET/LUN`, and after a question mark, with `&`
/// between them: `secret_file=PATH` (the secret's place, so that no list of processes shows it), `target_user=NAME`
/// with `target_password=SECRET` or `target_secret_file=PATH` (the target must know a secret too), `initiator=NAME`,
/// `header_digest=crc32c|none`, `data_digest=crc32c|none`, and `timeout=SECONDS` (how long requests wait for a target
/// that does not answer before they fail; 60).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub(crate) portal: Portal,
    pub(crate) target: String,
    pub(crate) lun: u16,
    /// What the target asks for.
    pub(crate) chap: Option<Credentials>,
    /// What is asked of the target.
    pub(crate) target_chap: Option<Credentials>,
    pub(crate) initiator: Option<String>,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    pub(crate) patience: Duration,
}

impl Location {
    /// Reads a URI; `None` when the text begins otherwise, so that it is a path.
    ///
    /// # Errors
    /// When the text begins like an iSCSI URI and is none, or a file with a secret cannot be read.
    pub fn parse(text: &str) -> Result<Option<Self>, IscsiError> {
        let Some(rest) = text.strip_prefix("iscsi://") else { return Ok(None) };
        let wrong = |problem: String| IscsiError::Uri { uri: without_secrets(text), problem };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut parts = rest.split('/');
        let authority = parts.next().unwrap_or_default();
        let (Some(target), Some(lun), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong("after the host, a target's name and a number are needed".to_owned()));
        };
        if !is_name(target) {
            let problem = format!("{target:?} is no target's name, as iqn.2003-01.org.example:disks is");
            return Err(wrong(problem));
        }
        let number = lun.parse().ok().filter(|lun| *lun <= LUN_MAX);
        let lun =
            number.ok_or_else(|| wrong(format!("logical unit {lun:?} is no number from 0 to {LUN_MAX}")))?;
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user.split_once('%').unwrap_or((user, ""))), host),
            None => (None, authority),
        };
        let mut location = Location {
            portal: Portal::parse(host).map_err(wrong)?,
            target: target.to_owned(),
            lun,
            chap: user.map(|(user, secret)| Credentials { user: user.to_owned(), secret: secret.into() }),
            target_chap: None,
            initiator: None,
            header_digest: false,
            data_digest: false,
            patience: Duration::from_secs(PATIENCE),
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            location.parameter(key, value, &wrong)?;
        }
        location.check_secrets().map_err(wrong)?;
        Ok(Some(location))
    }

    fn parameter(
        &mut self,
        key: &str,
        value: &str,
        wrong: &dyn Fn(String) -> IscsiError,
    ) -> Result<(), IscsiError> {
        let theirs = || Credentials { user: String::new(), secret: Vec::new() };
        match key {
            "secret_file" => {
                let chap = self.chap.as_mut().ok_or_else(|| wrong("secret_file needs USER@".to_owned()))?;
                chap.secret = secret_in(Path::new(value))?;
            }
            "target_user" => self.target_chap.get_or_insert_with(theirs).user = value.to_owned(),
            "target_password" => self.target_chap.get_or_insert_with(theirs).secret = value.into(),
            "target_secret_file" => {
                self.target_chap.get_or_insert_with(theirs).secret = secret_in(Path::new(value))?;
            }
            "initiator" if is_name(value) => self.initiator = Some(value.to_owned()),
            "header_digest" => self.header_digest = digest(value).map_err(wrong)?,
            "data_digest" => self.data_digest = digest(value).map_err(wrong)?,
            "timeout" => {
                let seconds = value.parse().ok().filter(|seconds| (1..=86_400).contains(seconds));
                self.patience = seconds.map(Duration::from_secs).ok_or_else(|| {
                    wrong(format!("timeout {value:?} is no number of seconds from 1 to 86400"))
                })?;
            }
            "initiator" => return Err(wrong(format!("{value:?} is no initiator's name"))),
            _ => {
                let known = "secret_file, target_user, target_password, target_secret_file, initiator, \
                             header_digest, data_digest, timeout";
                return Err(wrong(format!("parameter {key:?} is unknown; known: {known}")));
            }
        }
        Ok(())
    }

    /// Names and secrets go together, and the two directions have two secrets (RFC 7143, 9.2.1).
    fn check_secrets(&self) -> Result<(), String> {
        for chap in [&self.chap, &self.target_chap].into_iter().flatten() {
            if chap.user.is_empty() || chap.secret.is_empty() {
                return Err(
                    "a user and a secret go together: USER%SECRET@, or USER@ and secret_file".to_owned()
                );
            }
        }
        match (&self.chap, &self.target_chap) {
            (None, Some(_)) => Err("target_user needs USER%SECRET@ too".to_owned()),
            (Some(ours), Some(theirs)) if ours.secret == theirs.secret => {
                Err("both directions have the same secret; a target could send ours back".to_owned())
            }
            _ => Ok(()),
        }
    }
}

fn digest(value: &str) -> Result<bool, String> {
    match value {
        "crc32c" => Ok(true),
        "none" => Ok(false),
        _ => Err(format!("digest {value:?} is neither crc32c nor none")),
    }
}

fn secret_in(path: &Path) -> Result<Vec<u8>, IscsiError> {
    let problem = |problem: String| IscsiError::SecretFile { path: PathBuf::from(path), problem };
    let key = block::read_key_file(path).map_err(|error| problem(block::with_causes(&error)))?;
    // Editors end a file with a line end that is no part of a secret.
    let key = key.strip_suffix(b"\n").unwrap_or(&key);
    Ok(key.to_vec())
}

/// Whether text is a name as RFC 7143, 4.2.7 has it, once it is written as that wants it.
pub(crate) fn is_name(text: &str) -> bool {
    let kind = ["iqn.", "eui.", "naa."].iter().any(|kind| text.starts_with(kind));
    let character = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:".contains(&byte) || byte >= 0x80;
    // Some targets' administrators use underscores, and their targets let them.
    kind && text.len() <= NAME_MAX && text.bytes().all(|byte| character(byte) || byte == b'_')
}

/// A URI as it may be shown.
fn without_secrets(text: &str) -> String {
    let mut out = text.to_owned();
    if let Some(at) = out.find('@')
        && let Some(percent) = out[..at].find('%')
    {
        out.replace_range(percent + 1..at, "…");
    }
    const KEY: &str = "target_password=";
    if let Some(at) = out.find(KEY) {
        let start = at + KEY.len();
        let end = out[start..].find('&').map_or(out.len(), |len| start + len);
        out.replace_range(start..end, "…");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "iqn.2026-01.org.example:a";

    fn parse(text: &str) -> Location {
        Location::parse(text).unwrap().unwrap()
    }

    #[test]
    fn uris_name_target_and_unit() {
        let plain = parse(&format!("iscsi://example.org/{TARGET}/1"));
        assert_eq!((plain.portal.to_string().as_str(), plain.lun), ("example.org:3260", 1));
        assert_eq!((plain.target.as_str(), plain.chap), (TARGET, None));
        let full = parse(&format!(
            "iscsi://me%s@cret@[::1]:99/{TARGET}/300?target_user=it&target_password=other&header_digest=crc32c&timeout=5"
        ));
        assert_eq!(full.portal, Portal { host: "::1".to_owned(), port: 99 });
        let credentials =
            |user: &str, secret: &[u8]| Credentials { user: user.into(), secret: secret.into() };
        assert_eq!(full.chap, Some(credentials("me", b"s@cret")));
        assert_eq!(full.target_chap, Some(credentials("it", b"other")));
        assert_eq!((full.header_digest, full.data_digest, full.patience.as_secs()), (true, false, 5));
        assert_eq!(Location::parse("/a/path").unwrap(), None);
        assert_eq!(Location::parse("nbd://h/").unwrap(), None);
    }

    #[test]
    fn a_secret_may_be_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "from a file\n").unwrap();
        let uri = format!("iscsi://me@h/{TARGET}/0?secret_file={}", file.display());
        assert_eq!(parse(&uri).chap.unwrap().secret, b"from a file");
        let missing = Location::parse(&format!("iscsi://me@h/{TARGET}/0?secret_file=/nowhere")).unwrap_err();
        assert!(missing.to_string().contains("/nowhere"), "{missing}");
    }

    #[test]
    fn wrong_uris_say_what_would_be_right_and_no_secret() {
        for (uri, words) in [
            (format!("iscsi:///{TARGET}/0"), "a host is needed"),
            (format!("iscsi://h:x/{TARGET}/0"), "no number"),
            ("iscsi://h/disk/0".to_owned(), "no target's name"),
            (format!("iscsi://h/{TARGET}"), "a number are needed"),
            (format!("iscsi://h/{TARGET}/16384"), "from 0 to 16383"),
            (format!("iscsi://h/{TARGET}/0/0"), "a number are needed"),
            (format!("iscsi://me%@h/{TARGET}/0"), "go together"),
            (format!("iscsi://me%hidden@h/{TARGET}/0?x=1"), "parameter \"x\" is unknown"),
            (format!("iscsi://h/{TARGET}/0?target_user=a&target_password=hidden"), "needs USER"),
            (format!("iscsi://me%hidden@h/{TARGET}/0?target_user=a&target_password=hidden"), "same secret"),
            (format!("iscsi://h/{TARGET}/0?timeout=0"), "from 1 to 86400"),
        ] {
            let error = Location::parse(&uri).unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains("hidden"), "{uri}: {error}");
        }
    }
}

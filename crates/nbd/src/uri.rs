//! NBD URIs (the NBD project's `doc/uri.md`).

use crate::error::NbdError;
use std::path::PathBuf;

/// The port of servers that name none.
const PORT: u16 = 10809;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// An export on a server: `nbd://HOST[:PORT]/NAME` or `nbd+unix:///NAME?socket=PATH`; with TLS `nbds` and `nbds+unix`,
/// and then `tls-certificates=DIR` (with `ca-cert.pem`, and `client-cert.pem` and `client-key.pem` if the server wants
/// to know its clients) and, where it differs from the host, `tls-hostname=NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub(crate) address: Address,
    /// The export's name.
    pub(crate) export: String,
    pub(crate) tls: Option<TlsLocation>,
}

/// What TLS needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsLocation {
    pub certificates: PathBuf,
    /// The server's name in its certificate.
    pub name: String,
}

impl Location {
    /// Reads a URI; `None` when the text begins like none of ours, so that it is a path.
    ///
    /// # Errors
    /// When the text begins like an NBD URI and is none.
    pub fn parse(text: &str) -> Result<Option<Self>, NbdError> {
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(None) };
        let (secure, unix) = match scheme {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            _ => return Ok(None),
        };
        let wrong = |problem: String| NbdError::Uri { uri: text.to_owned(), problem };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let (mut socket, mut certificates, mut name) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decoded(value).map_err(wrong)?;
            match key {
                "socket" if unix => socket = Some(PathBuf::from(value)),
                "tls-certificates" if secure => certificates = Some(PathBuf::from(value)),
                "tls-hostname" if secure => name = Some(value),
                _ => {
                    let known = "socket (nbd+unix), tls-certificates and tls-hostname (nbds)";
                    return Err(wrong(format!("parameter {key:?} is unknown here; known: {known}")));
                }
            }
        }
        let address = if unix {
            if !authority.is_empty() {
                return Err(wrong("a Unix socket has no host: three slashes are needed".to_owned()));
            }
            Address::Unix(socket.ok_or_else(|| wrong("it needs ?socket=PATH".to_owned()))?)
        } else {
            host_and_port(authority).map_err(wrong)?
        };
        let tls = match (secure, certificates) {
            (false, _) => None,
            (true, None) => return Err(wrong("TLS needs ?tls-certificates=DIR".to_owned())),
            (true, Some(certificates)) => {
                let host = match &address {
                    Address::Tcp { host, .. } => host.clone(),
                    Address::Unix(_) => "localhost".to_owned(),
                };
                Some(TlsLocation { certificates, name: name.unwrap_or(host) })
            }
        };
        Ok(Some(Location { address, export: percent_decoded(export).map_err(wrong)?, tls }))
    }

    /// The server, for messages.
    pub(crate) fn server(&self) -> String {
        match &self.address {
            Address::Tcp { host, port } => format!("{host}:{port}"),
            Address::Unix(path) => path.display().to_string(),
        }
    }
}

fn host_and_port(authority: &str) -> Result<Address, String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("the bracket of the address is not closed")?;
            (host, rest.strip_prefix(':'))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() || host.contains('@') {
        return Err("a host is needed, without a user".to_owned());
    }
    let port = match port {
        None | Some("") => PORT,
        Some(text) => text.parse().map_err(|_| format!("port {text:?} is no number up to 65535"))?,
    };
    Ok(Address::Tcp { host: host.to_owned(), port })
}

/// Text with everything but unreserved characters (RFC 3986, 2.3) and slashes as `%XX`.
pub fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn percent_decoded(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} has a % without two hexadecimal digits, or is no UTF-8 then");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2).ok_or_else(wrong)?;
        let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_server_and_export() {
        let tcp = |text: &str| match Location::parse(text).unwrap().unwrap() {
            Location { address: Address::Tcp { host, port }, export, tls: None } => (host, port, export),
            other => panic!("{other:?}"),
        };
        let owned = |host: &str, port, export: &str| (host.to_owned(), port, export.to_owned());
        assert_eq!(tcp("nbd://example.org"), owned("example.org", 10809, ""));
        assert_eq!(tcp("nbd://example.org:1/a%20b"), owned("example.org", 1, "a b"));
        assert_eq!(tcp("nbd://[::1]:2/"), owned("::1", 2, ""));
        let unix = Location::parse("nbd+unix:///a/b?socket=/tmp/x%3f").unwrap().unwrap();
        assert_eq!((unix.address, unix.export.as_str()), (Address::Unix("/tmp/x?".into()), "a/b"));
        let tls = Location::parse("nbds://h/?tls-certificates=/c&tls-hostname=n").unwrap().unwrap().tls;
        assert_eq!(tls, Some(TlsLocation { certificates: "/c".into(), name: "n".to_owned() }));
        assert_eq!(Location::parse("/a/path").unwrap(), None);
        assert_eq!(Location::parse("http://h/").unwrap(), None);
        assert_eq!(percent_decoded(&percent_encoded("a b/ü%")).unwrap(), "a b/ü%");
    }

    #[test]
    fn wrong_uris_say_what_would_be_right() {
        for (uri, words) in [
            ("nbd:///x", "a host is needed"),
            ("nbd://h:x/", "no number"),
            ("nbd://[::1/", "not closed"),
            ("nbd+unix:///x", "?socket=PATH"),
            ("nbd+unix://h/x?socket=/s", "three slashes"),
            ("nbd://h/%4", "hexadecimal"),
            ("nbd://h/?socket=/s", "unknown here"),
            ("nbds://h/", "tls-certificates=DIR"),
        ] {
            let error = Location::parse(uri).unwrap_err().to_string();
            assert!(error.contains(words), "{uri}: {error}");
        }
    }
}

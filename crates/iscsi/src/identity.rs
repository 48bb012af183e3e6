//! Who we are.

use crate::uri::Location;
use std::io::{Read, Result};
use std::path::Path;

/// Where a host's administrator says the name that its initiators have.
const NAME_FILE: &str = "/etc/iscsi/initiatorname.iscsi";

/// Our name: the URI's, else the host's, else one made of the host's network name.
pub(crate) fn initiator(location: &Location) -> String {
    if let Some(name) = &location.initiator {
        return name.clone();
    }
    if let Some(name) = named(Path::new(NAME_FILE)) {
        return name;
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim().to_ascii_lowercase();
    let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || "-.".contains(*c)).collect();
    format!("iqn.2026-01.vireo:{}", if host.is_empty() { "host" } else { &host })
}

fn named(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let name = text.lines().find_map(|line| line.trim().strip_prefix("InitiatorName="))?.trim();
    crate::uri::is_name(name).then(|| name.to_owned())
}

/// Bytes nobody can guess.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A session's identifier in the random form (RFC 7143, 11.12.5), which no other session of this host has.
pub(crate) fn session() -> Result<[u8; 6]> {
    let [a, b, c, d, e] = random()?;
    Ok([0x80, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_name_is_taken_where_it_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("name");
        std::fs::write(&file, "# a comment\nInitiatorName=iqn.2001-04.org.example:host-7\n").unwrap();
        assert_eq!(named(&file).as_deref(), Some("iqn.2001-04.org.example:host-7"));
        std::fs::write(&file, "InitiatorName=nonsense\n").unwrap();
        assert_eq!(named(&file), None);
        assert_eq!(named(Path::new("/nowhere")), None);
    }
}

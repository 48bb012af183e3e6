//! Machine files: TOML or JSON, by the file's name.

use crate::{ConfigError, SerialConfig, VmConfig};
use std::path::{Path, PathBuf};

/// More than any machine file has.
const MAX_LEN: u64 = 1 << 20;

impl VmConfig {
    /// Reads a machine file. Paths in it are relative to its folder. It still has to be
    /// [validated](VmConfig::validate), after options had their say.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let read_error = |source| ConfigError::Read { path: path.to_owned(), source };
        let extension = path.extension().and_then(|extension| extension.to_str());
        let toml = match extension {
            Some("toml") => true,
            Some("json") => false,
            _ => return Err(ConfigError::Format { path: path.to_owned() }),
        };
        let metadata = std::fs::metadata(path).map_err(read_error)?;
        if !metadata.is_file() || metadata.len() > MAX_LEN {
            let reason = std::io::Error::other("it is not a regular file of at most 1 MiB");
            return Err(read_error(reason));
        }
        let text = std::fs::read_to_string(path).map_err(read_error)?;
        let parsed = if toml { parse_toml(&text) } else { parse_json(&text) };
        let mut config: VmConfig =
            parsed.map_err(|(line, reason)| ConfigError::File { path: path.to_owned(), line, reason })?;
        config.resolve_paths(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    fn resolve_paths(&mut self, folder: &Path) {
        let resolve = |path: &mut PathBuf| *path = folder.join(&*path);
        self.kernel.iter_mut().chain(self.initrd.iter_mut()).for_each(resolve);
        for disk in &mut self.disks {
            resolve(&mut disk.path);
            disk.key_file.iter_mut().chain(disk.backing.iter_mut()).for_each(resolve);
        }
        match &mut self.serial {
            SerialConfig::Unix(path) | SerialConfig::File(path) => resolve(path),
            SerialConfig::Stdio | SerialConfig::Pty | SerialConfig::None => {}
        }
    }
}

/// Line and reason.
type Complaint = (usize, String);

fn parse_toml(text: &str) -> Result<VmConfig, Complaint> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(start).filter(|&byte| byte == b'\n').count() + 1;
        (line, one_line(error.message()))
    })
}

fn parse_json(text: &str) -> Result<VmConfig, Complaint> {
    serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        let reason = message.split(" at line ").next().unwrap_or(&message);
        (error.line(), one_line(reason))
    })
}

/// What the parser says, in one line and in a person's words.
fn one_line(text: &str) -> String {
    let text = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    for (start, what) in [("unknown field ", "key"), ("unknown variant ", "value")] {
        if let Some(rest) = text.strip_prefix(start) {
            // The first quoted word is the wrong one, the others are the right ones.
            let mut words = rest.split('`').skip(1).step_by(2);
            let wrong = words.next().unwrap_or_default();
            let known: Vec<&str> = words.collect();
            let quoted: Vec<String> = known.iter().map(|word| format!("`{word}`")).collect();
            let meant =
                nearest(wrong, &known).map_or_else(String::new, |word| format!("did you mean `{word}`? "));
            return format!("unknown {what} `{wrong}`; {meant}known are {}", quoted.join(", "));
        }
    }
    text
}

/// The word that somebody meant who wrote another, if one is near.
fn nearest<'a>(wrong: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |word: &str| strsim::damerau_levenshtein(&wrong.replace('_', "-"), word);
    let best = known.iter().copied().min_by_key(|word| distance(word))?;
    (distance(best) <= best.len().min(wrong.len()).div_ceil(3)).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ByteSize, EngineChoice};

    fn read(name: &str, text: &str) -> Result<VmConfig, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let mut config = VmConfig::from_file(&path)?;
        // Makes paths comparable.
        config.kernel = config.kernel.map(|kernel| kernel.strip_prefix(folder.path()).unwrap().to_owned());
        Ok(config)
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = "kernel = 'k'\nmemory = '1G'\nengine = 'software'\nserial = 'none'\nno-reboot = true\n";
        let json = r#"{"kernel": "k", "memory": 1073741824, "engine": "software", "serial": "none", "no-reboot": true}"#;
        let from_toml = read("m.toml", toml).unwrap();
        assert_eq!(from_toml, read("m.json", json).unwrap());
        assert_eq!(from_toml.memory, ByteSize(1 << 30));
        assert_eq!(from_toml.engine, EngineChoice::Software);
        assert_eq!(from_toml.kernel, Some("k".into()));
        let again = toml::to_string(&from_toml).unwrap();
        assert_eq!(toml::from_str::<VmConfig>(&again).unwrap(), from_toml);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_known_ones() {
        for (name, text) in
            [("m.toml", "cpus = 1\nmemroy = '1G'\n"), ("m.json", "{\"cpus\": 1,\n\"memroy\": 1}")]
        {
            let error = read(name, text).unwrap_err().to_string();
            for words in [name, "line 2", "memroy", "did you mean `memory`?", "`debug-exit`"] {
                assert!(error.contains(words), "{words}: {error}");
            }
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn wrong_values_and_keys_of_disks_are_named() {
        for (text, line, words) in [
            ("engine = 'kmv'\n", 1, ["`kmv`", "did you mean `kvm`?", "`software`"]),
            (
                "\n[[disks]]\npath = 'a'\nread-only = true\n",
                4,
                ["`read-only`", "did you mean `readonly`?", "`serial`"],
            ),
            ("[[disks]]\npath = 'a'\nformat = 'rwa'\n", 3, ["`rwa`", "`raw`", "value"]),
            ("debug_exit = 5\n", 1, ["`debug_exit`", "did you mean `debug-exit`?", "key"]),
            ("kernel = 'a'\nmemory = '3Q'\n", 2, ["3Q", "512M", ""]),
            ("serial = 'tty'\n", 1, ["tty", "unix:PATH", ""]),
            ("wheels = 4\n", 1, ["`wheels`", "; known are", "`kernel`"]),
            ("kernel = \n", 1, ["m.toml", "", ""]),
        ] {
            let error = read("m.toml", text).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line}:")), "{error}");
            for word in words {
                assert!(error.contains(word), "{word}: {error}");
            }
        }
    }

    #[test]
    fn ranges_are_checked() {
        let good = VmConfig { kernel: Some("k".into()), ..VmConfig::default() };
        good.validate().unwrap();
        let cases: [(&str, VmConfig); 6] = [
            ("at least 2M", VmConfig { memory: ByteSize(3 << 10), ..good.clone() }),
            ("whole pages", VmConfig { memory: ByteSize((2 << 20) + 1), ..good.clone() }),
            ("1 to 255", VmConfig { cpus: 0, ..good.clone() }),
            ("1 to 255", VmConfig { cpus: 256, ..good.clone() }),
            ("--kernel", VmConfig { kernel: None, ..good.clone() }),
            ("letters", VmConfig { name: "a b".into(), ..good.clone() }),
        ];
        for (words, config) in cases {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}

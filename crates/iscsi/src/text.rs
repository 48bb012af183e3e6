//! Text of logins: pairs of keys and values (RFC 7143, 6).

/// Keys and values, each once, in the order they came.
#[derive(Debug, Default)]
pub(crate) struct Keys(Vec<(String, String)>);

impl Keys {
    /// Reads `key=value` pairs with a zero byte behind each.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut keys = Vec::new();
        for pair in bytes.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()) {
            let text = std::str::from_utf8(pair).map_err(|_| "its text is no UTF-8".to_owned())?;
            let (key, value) = text.split_once('=').ok_or("its text has a key without a value")?;
            keys.push((key.to_owned(), value.to_owned()));
        }
        Ok(Keys(keys))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The value of a key that must be there.
    pub fn need(&self, key: &str) -> Result<&str, String> {
        self.get(key).ok_or_else(|| format!("its answer has no {key}"))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Goes on with those that came later.
    pub fn append(&mut self, mut later: Keys) {
        self.0.append(&mut later.0);
    }
}

/// Adds a pair to text that is sent.
pub(crate) fn push(text: &mut Vec<u8>, key: &str, value: &str) {
    text.extend_from_slice(key.as_bytes());
    text.push(b'=');
    text.extend_from_slice(value.as_bytes());
    text.push(0);
}

/// A number in decimal or, after `0x`, hexadecimal digits.
pub(crate) fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

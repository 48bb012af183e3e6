//! AML put together from pieces that are built already.

use acpi_tables::aml::{Device, Method, Name, Path, ResourceTemplate};
use acpi_tables::{Aml, AmlSink};

/// AML already built.
pub struct Raw(pub Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// Builds an object.
pub fn raw(object: &dyn Aml) -> Raw {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    Raw(bytes)
}

/// The pieces as the builders want them.
pub fn all(parts: &[Raw]) -> Vec<&dyn Aml> {
    parts.iter().map(|part| part as &dyn Aml).collect()
}

/// A named object.
pub fn name(path: &str, value: &dyn Aml) -> Raw {
    raw(&Name::new(Path::new(path), value))
}

/// `_CRS`.
pub fn resources(items: Vec<&dyn Aml>) -> Raw {
    name("_CRS", &ResourceTemplate::new(items))
}

/// A device.
pub fn device(path: &str, parts: &[Raw]) -> Raw {
    raw(&Device::new(Path::new(path), all(parts)))
}

/// A method. Each is serialized: two callers at a time would make the same names twice.
pub fn method(path: &str, arguments: u8, parts: &[Raw]) -> Raw {
    raw(&Method::new(Path::new(path), arguments, true, all(parts)))
}

//! CPU models.
/// A CPU model.
#[derive(Clone, Debug)]
pub struct CpuModel {
    /// Name.
    pub name: String,
}

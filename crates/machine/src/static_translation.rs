//! Translating images before anything runs.

use engine::cpu_model::CpuModel;
pub use engine_soft::translate::store::LARGEST as LARGEST_TRANSLATION_FILE;
use engine_soft::translate::store::{Preparation, PrepareError, Prepared, StoreError, TranslationStore};
use loader::LoadError;
use std::path::{Path, PathBuf};

/// Why an image was not translated.
#[derive(Debug, thiserror::Error)]
pub enum TranslateError {
    /// An image cannot be used.
    #[error(transparent)]
    Image(#[from] LoadError),
    /// The store, a profile, or the model cannot be used.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
}

impl From<StoreError> for TranslateError {
    fn from(error: StoreError) -> Self {
        TranslateError::Prepare(error.into())
    }
}

/// Translates the 64-bit code of kernels and programs, and what earlier runs have translated, for machines with a CPU
/// model, into the store in a directory.
///
/// # Errors
/// When an image, a profile or the directory cannot be used; the store is as it was then.
pub fn translate_ahead(
    images: &[PathBuf],
    profiles: &[PathBuf],
    store: &Path,
    model: &CpuModel,
) -> Result<Prepared, TranslateError> {
    let mut preparation = Preparation::new(TranslationStore::open(store)?, model)?;
    for image in images {
        for (address, code) in loader::code(image)? {
            preparation.add_code(&code, address);
        }
    }
    for profile in profiles {
        preparation.add_profile(profile)?;
    }
    Ok(preparation.finish()?)
}

//! Files that a guest is loaded from.

use crate::LoadError;
use guest_memory::GuestMemory;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes copied at a time.
const CHUNK: usize = 256 << 10;
/// `O_NONBLOCK`: a pipe without a writer must not hold up the start.
const NONBLOCK: i32 = 0o4000;

/// A regular file, opened for reading.
pub struct SourceFile {
    role: &'static str,
    path: PathBuf,
    file: File,
    size: u64,
}

impl SourceFile {
    /// Opens a file with content.
    pub fn open(path: &Path, role: &'static str) -> Result<Self, LoadError> {
        let path = path.to_owned();
        let opened = std::fs::OpenOptions::new().read(true).custom_flags(NONBLOCK).open(&path);
        let result = opened.and_then(|file| file.metadata().map(|metadata| (file, metadata)));
        let (file, metadata) = match result {
            Ok(opened) => opened,
            Err(source) => return Err(LoadError::Read { role, path, source }),
        };
        let found = if metadata.is_dir() {
            Some("a directory")
        } else if !metadata.is_file() {
            Some("not a regular file")
        } else if metadata.len() == 0 {
            Some("empty")
        } else {
            None
        };
        match found {
            Some(found) => Err(LoadError::NotAFile { role, path, found }),
            None => Ok(SourceFile { role, path, file, size: metadata.len() }),
        }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn failed(&self, source: std::io::Error) -> LoadError {
        LoadError::Read { role: self.role, path: self.path.clone(), source }
    }

    /// The whole content, which must not exceed `limit` bytes.
    pub fn read_all(mut self, limit: u64) -> Result<Vec<u8>, LoadError> {
        let (role, path) = (self.role, &self.path);
        if self.size > limit {
            return Err(LoadError::LargerThanMemory {
                role,
                path: path.clone(),
                size: self.size,
                memory: limit,
            });
        }
        let mut content = vec![0; self.size as usize];
        self.file.read_exact(&mut content).map_err(|source| self.failed(source))?;
        Ok(content)
    }

    /// Copies the content to RAM.
    pub fn copy_to(mut self, memory: &GuestMemory, address: u64) -> Result<(), LoadError> {
        let mut buffer = vec![0; CHUNK];
        let mut done = 0;
        while done < self.size {
            let len = (self.size - done).min(CHUNK as u64) as usize;
            let chunk = &mut buffer[..len];
            self.file.read_exact(chunk).map_err(|source| self.failed(source))?;
            memory.write(address + done, chunk)?;
            done += len as u64;
        }
        Ok(())
    }
}

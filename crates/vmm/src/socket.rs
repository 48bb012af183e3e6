//! Unix sockets that listen at a path of a person's choosing.
//!
//! A path is taken when anything is there. The one exception: a socket that refuses connections is what a process
//! left that was killed, and it is replaced. Only the owner may connect. The path goes away with the [`Listener`],
//! unless something else is there by then.

use crate::VmmError;
use rustix::fs::{FlockOperation, Mode, OFlags, fchmod, flock, open};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 8;

/// A listening socket and its path.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: UnixListener,
    place: Place,
}

/// The path, and which file is ours there.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`.
    ///
    /// # Errors
    /// [`VmmError::SocketTaken`] when something is there; [`VmmError::Socket`] when the system refuses.
    pub fn bind(path: &Path) -> Result<Self, VmmError> {
        let fail = |source: Error| VmmError::Socket { path: path.to_owned(), source };
        // Two that find the same left-over socket must not remove each other's new one. Without the right to read
        // the folder there is no lock, and the folder is hardly shared.
        let _lock = lock_folder(path);
        if is_left_over(path) {
            std::fs::remove_file(path).map_err(fail)?;
        }
        let socket = match bind_here(path) {
            Ok(socket) => UnixListener::from(socket),
            Err(error) if error == rustix::io::Errno::ADDRINUSE => {
                return Err(VmmError::SocketTaken { path: path.to_owned(), found: describe(path) });
            }
            Err(error) => return Err(fail(error.into())),
        };
        Ok(Listener { socket, place: Place { path: path.to_owned(), identity: identity(path) } })
    }
}

impl Listener {
    /// Removes the path; whoever is connected stays so.
    pub fn remove(&self) {
        self.place.remove();
    }
}

impl Place {
    fn remove(&self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.remove();
    }
}

fn bind_here(path: &Path) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The file that bind makes gets the socket's own mode.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn lock_folder(path: &Path) -> Option<OwnedFd> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    flock(&folder, FlockOperation::LockExclusive).ok()?;
    Some(folder)
}

fn is_left_over(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// What is at a path, in words.
fn describe(path: &Path) -> &'static str {
    match std::fs::symlink_metadata(path).map(|found| found.file_type()) {
        Ok(kind) if kind.is_socket() => "a process listens there",
        Ok(kind) if kind.is_dir() => "a directory is there",
        Ok(kind) if kind.is_symlink() => "a symbolic link is there",
        _ => "a file is there",
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_socket_comes_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_taken_path_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let live = folder.path().join("live");
        let listener = UnixListener::bind(&live).unwrap();
        let error = Listener::bind(&live).unwrap_err();
        assert!(matches!(error, VmmError::SocketTaken { .. }), "{error}");
        drop(listener);
        let file = folder.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        let error = Listener::bind(&file).unwrap_err();
        assert!(matches!(error, VmmError::SocketTaken { .. }), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }

    #[test]
    fn a_left_over_socket_is_replaced_and_anothers_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists(), "another process's socket was removed");
        drop(other);
    }

    #[test]
    fn a_path_beyond_the_limit_is_refused() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        assert!(matches!(Listener::bind(&path), Err(VmmError::Socket { .. })));
    }
}

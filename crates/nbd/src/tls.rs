//! TLS: certificates in the files that QEMU and libnbd use, and a [`Wire`] over it.
//!
//! A session has one state for both directions, but is used by a receiving and by many sending threads. So nobody holds
//! the session while it waits for the socket: the receiver reads cipher text first and feeds it then; senders take
//! turns, encrypt under the session's lock, and send what came out in their turn.

use crate::error::NbdError;
use crate::wire::{TimedStream, Wire};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};
use std::io::{Error, ErrorKind, IoSlice, Read, Result, Write};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A server's certificate and key, and whom it lets in.
#[derive(Clone, Debug)]
pub struct ServerTls(Arc<ServerConfig>);

impl ServerTls {
    /// From `server-cert.pem` and `server-key.pem` in a folder. With `verify_peer`, clients need a certificate that
    /// `ca-cert.pem` has signed.
    ///
    /// # Errors
    /// When a file is missing or holds something else.
    pub fn load(folder: &Path, verify_peer: bool) -> std::result::Result<Self, NbdError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(refused)?;
        let builder = if verify_peer {
            let roots = Arc::new(roots(folder)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|error| NbdError::Tls { problem: error.to_string() })?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let chain = certificates(&folder.join("server-cert.pem"))?;
        let config =
            builder.with_single_cert(chain, key(&folder.join("server-key.pem"))?).map_err(refused)?;
        Ok(ServerTls(Arc::new(config)))
    }
}

/// What a client knows of its server, and how it is known itself.
#[derive(Clone, Debug)]
pub(crate) struct ClientTls(Arc<ClientConfig>);

impl ClientTls {
    /// From `ca-cert.pem` in a folder, and `client-cert.pem` with `client-key.pem` if the first of them is there.
    ///
    /// # Errors
    /// When a file is missing or holds something else.
    pub fn load(folder: &Path) -> std::result::Result<Self, NbdError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(refused)?
            .with_root_certificates(roots(folder)?);
        let own = folder.join("client-cert.pem");
        let config = if own.exists() {
            let key = key(&folder.join("client-key.pem"))?;
            builder.with_client_auth_cert(certificates(&own)?, key).map_err(refused)?
        } else {
            builder.with_no_client_auth()
        };
        Ok(ClientTls(Arc::new(config)))
    }
}

fn refused(error: rustls::Error) -> NbdError {
    NbdError::Tls { problem: error.to_string() }
}

fn roots(folder: &Path) -> std::result::Result<RootCertStore, NbdError> {
    let path = folder.join("ca-cert.pem");
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&path)? {
        roots
            .add(certificate)
            .map_err(|error| NbdError::TlsFile { path: path.clone(), problem: error.to_string() })?;
    }
    Ok(roots)
}

fn wrong(path: &Path, what: &str, error: &rustls::pki_types::pem::Error) -> NbdError {
    NbdError::TlsFile { path: PathBuf::from(path), problem: format!("{what} in PEM is needed: {error}") }
}

fn certificates(path: &Path) -> std::result::Result<Vec<CertificateDer<'static>>, NbdError> {
    let failed = |error| wrong(path, "a certificate", &error);
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<std::result::Result<_, _>>()
        .map_err(failed)?;
    if found.is_empty() {
        return Err(failed(rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn key(path: &Path) -> std::result::Result<PrivateKeyDer<'static>, NbdError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| wrong(path, "a private key", &error))
}

/// Cipher text that was received and not decrypted yet.
struct Cipher {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// TLS over a socket.
pub struct TlsWire {
    socket: TimedStream,
    session: Mutex<Connection>,
    cipher: Mutex<Cipher>,
    /// Held by whoever sends; its content is the cipher text on its way.
    sending: Mutex<Vec<u8>>,
}

/// Longest wait for the end of a session to be sent.
const FAREWELL: Duration = Duration::from_secs(1);
/// Plain text that is encrypted at once.
const STEP: usize = 32 << 10;

impl TlsWire {
    /// The server's side of the TLS handshake.
    pub fn accept(socket: TimedStream, tls: &ServerTls) -> Result<Self> {
        let session = ServerConnection::new(tls.0.clone()).map_err(Error::other)?;
        Self::shake_hands(socket, session.into())
    }

    /// The client's side of the TLS handshake with the server of this name.
    pub fn connect(socket: TimedStream, tls: &ClientTls, name: &str) -> Result<Self> {
        let name = ServerName::try_from(name.to_owned()).map_err(|_| {
            Error::new(ErrorKind::InvalidInput, format!("{name:?} is no name of a TLS server"))
        })?;
        let session = ClientConnection::new(tls.0.clone(), name).map_err(Error::other)?;
        Self::shake_hands(socket, session.into())
    }

    fn shake_hands(socket: TimedStream, session: Connection) -> Result<Self> {
        let bytes = vec![0; 16 << 10].into_boxed_slice();
        let wire = TlsWire {
            socket,
            session: Mutex::new(session),
            cipher: Mutex::new(Cipher { bytes, start: 0, end: 0 }),
            sending: Mutex::new(Vec::new()),
        };
        wire.send_pending()?;
        while wire.session.lock().is_handshaking() {
            let fed = wire.feed(&mut wire.cipher.lock());
            // The peer is told why, and what ends the handshake.
            wire.send_pending()?;
            if !fed? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(wire)
    }

    /// Decrypts what is there, or else what comes next. `Ok(false)`: nothing comes any more.
    fn feed(&self, cipher: &mut Cipher) -> Result<bool> {
        if cipher.start == cipher.end {
            cipher.start = 0;
            cipher.end = self.socket.receive(&mut cipher.bytes)?;
            if cipher.end == 0 {
                return Ok(false);
            }
        }
        let mut rest = cipher.bytes.get(cipher.start..cipher.end).unwrap_or_default();
        let mut session = self.session.lock();
        session.read_tls(&mut rest)?;
        cipher.start = cipher.end - rest.len();
        session.process_new_packets().map_err(|error| Error::new(ErrorKind::InvalidData, error))?;
        Ok(true)
    }

    /// Sends what TLS itself has to say.
    fn send_pending(&self) -> Result<()> {
        if !self.session.lock().wants_write() {
            return Ok(());
        }
        let mut out = self.sending.lock();
        self.encrypt(&mut out, &[])?;
        (&self.socket.stream).write_all(&out)
    }

    /// Encrypts a part that fits into the session's buffer.
    fn encrypt(&self, out: &mut Vec<u8>, plain: &[u8]) -> Result<()> {
        let mut session = self.session.lock();
        session.writer().write_all(plain)?;
        out.clear();
        while session.wants_write() {
            session.write_tls(out)?;
        }
        Ok(())
    }
}

impl Wire for TlsWire {
    fn receive(&self, buffer: &mut [u8]) -> Result<usize> {
        let mut cipher = self.cipher.lock();
        loop {
            match self.session.lock().reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
            if !self.feed(&mut cipher)? {
                // Without close_notify somebody else may have cut the connection; whoever receives sees a request
                // cut off, or just the end of a peer in a hurry.
                return Ok(0);
            }
            self.send_pending()?;
        }
    }

    fn send(&self, buffers: &mut [IoSlice<'_>]) -> Result<()> {
        let mut out = self.sending.lock();
        for part in buffers.iter().flat_map(|buffer| buffer.chunks(STEP)) {
            self.encrypt(&mut out, part)?;
            (&self.socket.stream).write_all(&out)?;
        }
        Ok(())
    }

    fn set_deadline(&self, deadline: Option<Instant>) -> Result<()> {
        self.socket.set_deadline(deadline)
    }

    fn close(&self) {
        self.socket.stream.shutdown(Shutdown::Read);
    }

    fn start_tls(&self, _tls: &ServerTls) -> Result<Arc<dyn Wire>> {
        Err(Error::new(ErrorKind::InvalidInput, "TLS is there already"))
    }
}

impl Drop for TlsWire {
    fn drop(&mut self) {
        self.session.get_mut().send_close_notify();
        // A peer that has gone, or takes nothing, needs no farewell.
        if self.socket.stream.set_write_timeout(Some(FAREWELL)).is_ok() {
            let _ = self.send_pending();
        }
    }
}

//! A file on a web server as a disk, for reading.
//!
//! Parts of the file are fetched with range requests (RFC 9110, section 14) in blocks of 256 KiB, of which the latest
//! are kept; who reads on gets several blocks with one request. A server without ranges is refused when the disk is
//! opened, and a file that changes meanwhile is an error, as half of it would be old and half new.
//!
//! What the server says is not believed: an answer has exactly the bytes that were asked for, or it is an error.

mod cache;
mod error;

pub use error::HttpError;

use block::{BlockBackend, Capabilities, Extent};
use cache::{BLOCK, Cache};
use parking_lot::Mutex;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Read, Result};
use std::sync::Arc;
use std::time::Duration;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// Longest wait for a connection, and for the answer to a request.
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests for the same bytes, when connections break.
const ATTEMPTS: u32 = 3;
/// Pause before a request is made again; each is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(200);
const REDIRECTS: u32 = 5;
/// Most blocks of one request: 4 MiB.
const AHEAD: u64 = 16;

/// Whether a path is the address of a file on a web server.
pub fn is_address(path: &std::path::Path) -> bool {
    path.to_str().is_some_and(|text| {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        scheme
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"))
    })
}

/// A file on a web server.
pub struct HttpDisk {
    agent: Agent,
    address: String,
    size: u64,
    /// What tells this version of the file from others (ETag, or else Last-Modified).
    version: Option<String>,
    cache: Mutex<Cache>,
}

impl HttpDisk {
    /// Asks the server for the file's size.
    ///
    /// # Errors
    /// When the server cannot be reached, has no such file, or answers no range requests.
    pub fn open(address: &str) -> std::result::Result<Self, HttpError> {
        let agent = agent();
        let response = get(&agent, address, 0, 1)?;
        let wrong = |problem: String| HttpError::Server { address: address.to_owned(), problem };
        let size = match response.status() {
            StatusCode::PARTIAL_CONTENT => total(response.headers())
                .ok_or_else(|| wrong("does not say how long the file is (Content-Range)".to_owned()))?,
            StatusCode::OK => return Err(HttpError::NoRanges { address: address.to_owned() }),
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(wrong("has an empty file there".to_owned())),
            status => return Err(wrong(format!("answers {status}"))),
        };
        let version = version(response.headers());
        tracing::debug!("{address}: {size} bytes, version {version:?}");
        Ok(HttpDisk { agent, address: address.to_owned(), size, version, cache: Mutex::default() })
    }

    /// The block with this number, which is on the disk.
    fn block(&self, number: u64) -> Result<Arc<[u8]>> {
        let wanted = {
            let mut cache = self.cache.lock();
            match cache.get(number) {
                Some(block) => return Ok(block),
                None => cache.run(number, AHEAD),
            }
        };
        let start = number * BLOCK;
        let end = (start + wanted * BLOCK).min(self.size);
        let bytes = self.fetch(start, end - start)?;
        let mut cache = self.cache.lock();
        for (number, block) in (number..).zip(bytes.chunks(BLOCK as usize)) {
            cache.put(number, block.into());
        }
        let first = bytes.chunks(BLOCK as usize).next().unwrap_or_default();
        Ok(first.into())
    }

    /// Bytes of the file; again when the connection breaks.
    fn fetch(&self, start: u64, len: u64) -> Result<Vec<u8>> {
        let mut pause = PAUSE;
        for attempt in 1.. {
            match self.try_fetch(start, len) {
                Err(HttpError::Connection { source, .. }) if attempt < ATTEMPTS => {
                    tracing::debug!("{}: {source}; once more", self.address);
                    std::thread::sleep(pause);
                    pause *= 2;
                }
                other => return other.map_err(Error::other),
            }
        }
        Err(ErrorKind::TimedOut.into())
    }

    fn try_fetch(&self, start: u64, len: u64) -> std::result::Result<Vec<u8>, HttpError> {
        let wrong = |problem: String| HttpError::Server { address: self.address.clone(), problem };
        let mut response = get(&self.agent, &self.address, start, len)?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Err(wrong(format!(
                "answers {} to a request for {len} bytes at {start}",
                response.status()
            )));
        }
        if total(response.headers()) != Some(self.size) || version(response.headers()) != self.version {
            return Err(HttpError::Changed { address: self.address.clone() });
        }
        if first(response.headers()) != Some(start) {
            return Err(wrong(format!("sends other bytes than those at {start}")));
        }
        let mut bytes = vec![0; len as usize];
        let failed = |source| HttpError::Connection { address: self.address.clone(), source };
        response.body_mut().as_reader().read_exact(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }
}

fn agent() -> Agent {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // Also for http://, which may redirect. Without a list, every certificate is refused.
    let found = rustls_native_certs::load_native_certs();
    found.errors.iter().for_each(|error| tracing::warn!("certificates of this host: {error}"));
    let certificates: Vec<Certificate<'static>> =
        found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&certificates))
        .unversioned_rustls_crypto_provider(provider)
        .build();
    let config = Agent::config_builder()
        .timeout_connect(Some(PATIENCE))
        .timeout_send_request(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_recv_body(Some(PATIENCE * 4))
        .max_redirects(REDIRECTS)
        .http_status_as_error(false)
        .tls_config(tls)
        .build();
    config.into()
}

/// Asks for a range.
fn get(agent: &Agent, address: &str, start: u64, len: u64) -> std::result::Result<Response<Body>, HttpError> {
    let range = format!("bytes={start}-{}", start + len - 1);
    let failed = |error: ureq::Error| HttpError::Connection {
        address: address.to_owned(),
        source: match error {
            ureq::Error::Io(error) => error,
            error => Error::other(error),
        },
    };
    agent.get(address).header("Range", range).header("Accept-Encoding", "identity").call().map_err(failed)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The range of `Content-Range: bytes FIRST-LAST/TOTAL` (RFC 9110, section 14.4).
fn content_range(headers: &HeaderMap) -> Option<(&str, &str)> {
    text(headers, "content-range")?.trim().strip_prefix("bytes ")?.split_once('/')
}

fn total(headers: &HeaderMap) -> Option<u64> {
    content_range(headers)?.1.parse().ok().filter(|size| i64::try_from(*size).is_ok())
}

fn first(headers: &HeaderMap) -> Option<u64> {
    content_range(headers)?.0.split_once('-')?.0.parse().ok()
}

fn version(headers: &HeaderMap) -> Option<String> {
    text(headers, "etag").or_else(|| text(headers, "last-modified")).map(str::to_owned)
}

fn refused() -> Error {
    Error::new(ErrorKind::ReadOnlyFilesystem, "a file on a web server is for reading only")
}

impl BlockBackend for HttpDisk {
    fn size(&self) -> u64 {
        self.size
    }
    fn capabilities(&self) -> Capabilities {
        // Zeros follow its end, as a last sector may not be whole.
        Capabilities { read_only: true, discard: false, zero_alignment: 512, growable: true }
    }
    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let mut at = offset;
        for buffer in buffers {
            let mut rest: &mut [u8] = buffer;
            while !rest.is_empty() {
                if at >= self.size {
                    rest.fill(0);
                    break;
                }
                let block = self.block(at / BLOCK)?;
                let there = block.get((at % BLOCK) as usize..).unwrap_or_default();
                let now = there.len().min(rest.len());
                if now == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                let (here, later) = rest.split_at_mut(now);
                here.copy_from_slice(&there[..now]);
                at += now as u64;
                rest = later;
            }
        }
        Ok(())
    }
    fn write_at(&self, _offset: u64, _buffers: &[IoSlice<'_>]) -> Result<()> {
        Err(refused())
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(refused())
    }
    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> Result<()> {
        Err(refused())
    }
    fn resize(&self, _size: u64) -> Result<()> {
        Err(refused())
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        Ok(Extent::data(offset, len, Some(offset)))
    }
}

//! A small web server for tests: one file, with or without ranges, and with the faults that a test wants.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// What the server has and does.
pub struct Site {
    /// The file.
    pub content: Mutex<Vec<u8>>,
    /// Its ETag.
    pub tag: Mutex<String>,
    /// It answers range requests.
    pub ranges: bool,
    /// So many answers from now on end in the middle.
    pub broken: AtomicU32,
    /// Requests so far.
    pub requests: AtomicU32,
}

impl Site {
    pub fn new(content: Vec<u8>) -> Self {
        Site {
            content: Mutex::new(content),
            tag: Mutex::new("\"one\"".to_owned()),
            ranges: true,
            broken: AtomicU32::new(0),
            requests: AtomicU32::new(0),
        }
    }

    /// Serves at the address that is returned, until the process ends.
    pub fn start(self) -> (Arc<Site>, String) {
        let site = Arc::new(self);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/disk.img", listener.local_addr().unwrap());
        let served = site.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let site = served.clone();
                // A client that leaves is no failure of the server.
                std::thread::spawn(move || drop(site.connection(&stream)));
            }
        });
        (site, address)
    }

    fn connection(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?);
        loop {
            let (mut range, mut line) = (None, String::new());
            if lines.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let missing = !line.contains(" /disk.img ");
            while line.trim() != "" {
                line.clear();
                lines.read_line(&mut line)?;
                let lower = line.to_ascii_lowercase();
                if let Some(text) = lower.trim().strip_prefix("range: bytes=") {
                    range = text
                        .split_once('-')
                        .map(|(first, last)| (first.parse().unwrap(), last.parse().unwrap()));
                }
            }
            self.requests.fetch_add(1, Ordering::Relaxed);
            let content = self.content.lock().unwrap().clone();
            let tag = self.tag.lock().unwrap().clone();
            let answer = match range.filter(|_| self.ranges) {
                _ if missing => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".as_bytes().to_vec(),
                None => [
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", content.len()).as_bytes(),
                    &content,
                ]
                .concat(),
                Some((first, _)) if first >= content.len() => {
                    let total = content.len();
                    format!("HTTP/1.1 416 No\r\nContent-Range: bytes */{total}\r\nContent-Length: 0\r\n\r\n")
                        .into()
                }
                Some((first, last)) => {
                    let last: usize = std::cmp::min(last, content.len() - 1);
                    let head = format!(
                        "HTTP/1.1 206 Partial Content\r\nETag: {tag}\r\nContent-Range: bytes {first}-{last}/{}\r\n\
                         Content-Length: {}\r\n\r\n",
                        content.len(),
                        last - first + 1
                    );
                    [head.as_bytes(), &content[first..=last]].concat()
                }
            };
            let less = |left: u32| left.checked_sub(1);
            if self.broken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
                stream.write_all(&answer[..answer.len() - 1])?;
                return stream.shutdown(std::net::Shutdown::Both);
            }
            stream.write_all(&answer)?;
        }
    }
}

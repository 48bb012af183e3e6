//! The client's side of the handshake.

use crate::error::NbdError;
use crate::protocol::{
    Fields, INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_MAX, flag, handshake, info, option,
    put_string, reply,
};
use crate::tls::{ClientTls, TlsWire};
use crate::uri::{Address, Location};
use crate::wire::{PlainWire, Receiver, Stream, TimedStream};
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest time for all of it.
const HANDSHAKE_TIME: Duration = Duration::from_secs(20);
/// Longest data of a reply to an option.
const REPLY_MAX: u32 = 64 << 10;
/// Most replies to one option.
const REPLIES_MAX: usize = 64;

/// What the server offers.
pub struct Offer {
    pub receiver: Receiver,
    pub size: u64,
    /// "Transmission flags".
    pub flags: u16,
    /// Requests are multiples of this many bytes, a power of two.
    pub block: u32,
    /// Longest request that moves data.
    pub longest: u32,
    pub structured: bool,
    /// The number of `base:allocation`.
    pub allocation: Option<u32>,
}

/// Connects and chooses the export.
pub fn connect(location: &Location) -> std::result::Result<Offer, NbdError> {
    let server = location.server();
    let failed = |action| {
        let server = server.clone();
        move |source| NbdError::Connect { server, action, source }
    };
    let stream = match &location.address {
        Address::Tcp { host, port } => {
            let socket = TcpStream::connect((host.as_str(), *port)).map_err(failed("connecting"))?;
            socket.set_nodelay(true).map_err(failed("connecting"))?;
            Stream::Tcp(socket)
        }
        Address::Unix(path) => Stream::Unix(UnixStream::connect(path).map_err(failed("connecting"))?),
    };
    // Kept for TLS, which takes the socket over after the first bytes.
    let copy = stream.try_clone().map_err(failed("connecting"))?;
    let receiver = Receiver::new(Arc::new(PlainWire::new(stream)));
    let deadline = Instant::now() + HANDSHAKE_TIME;
    receiver.wire().set_deadline(Some(deadline)).map_err(failed("connecting"))?;
    let mut talk = Talk { receiver, refusal: None };
    let result = talk.begin().and_then(|no_zeroes| {
        if let Some(tls) = &location.tls {
            let config = ClientTls::load(&tls.certificates).map_err(Error::other)?;
            if talk.ask(option::STARTTLS, &[])?.is_none() {
                return Err(talk.refused("no TLS"));
            }
            let socket = TimedStream::new(copy);
            socket.set_deadline(Some(deadline))?;
            talk.receiver = Receiver::new(Arc::new(TlsWire::connect(socket, &config, &tls.name)?));
        }
        talk.choose(&location.export, no_zeroes)
    });
    match result {
        Ok((size, flags, block, longest, structured, allocation)) => {
            talk.receiver.wire().set_deadline(None).map_err(failed("connecting"))?;
            Ok(Offer { receiver: talk.receiver, size, flags, block, longest, structured, allocation })
        }
        Err(source) if talk.refusal.is_some() => {
            Err(NbdError::Server { server, problem: source.to_string() })
        }
        Err(source) => Err(failed("the handshake")(source)),
    }
}

/// Kinds and data.
type Replies = Vec<(u32, Vec<u8>)>;
/// Size, flags, smallest block, longest request, structured replies, number of `base:allocation`.
type Choice = (u64, u16, u32, u32, bool, Option<u32>);

struct Talk {
    receiver: Receiver,
    /// The server's last refusal: its number and what it says.
    refusal: Option<(u32, String)>,
}

fn broken(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

impl Talk {
    /// Until options can be asked for. Whether the server leaves out zeros.
    fn begin(&mut self) -> Result<bool> {
        if u64::from_be_bytes(self.receiver.array()?) != INIT_MAGIC {
            return Err(broken("who listens there does not speak NBD"));
        }
        if u64::from_be_bytes(self.receiver.array()?) != OPTION_MAGIC {
            return Err(broken("the server knows only the oldest protocol, which has no exports"));
        }
        let flags = u16::from_be_bytes(self.receiver.array()?);
        if flags & handshake::FIXED_NEWSTYLE == 0 {
            return Err(broken("the server does not speak the fixed newstyle protocol"));
        }
        let mine = flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        self.receiver.wire().send(&mut [IoSlice::new(&u32::from(mine).to_be_bytes())])?;
        Ok(flags & handshake::NO_ZEROES != 0)
    }

    fn say(&self, option: u32, data: &[u8]) -> Result<()> {
        let mut message = OPTION_MAGIC.to_be_bytes().to_vec();
        message.extend_from_slice(&option.to_be_bytes());
        message.extend_from_slice(&(data.len() as u32).to_be_bytes());
        message.extend_from_slice(data);
        self.receiver.wire().send(&mut [IoSlice::new(&message)])
    }

    /// All replies before the acknowledgement; `None` when the server refuses.
    fn ask(&mut self, option: u32, data: &[u8]) -> Result<Option<Replies>> {
        self.say(option, data)?;
        let mut replies = Vec::new();
        while replies.len() <= REPLIES_MAX {
            let magic = u64::from_be_bytes(self.receiver.array()?);
            let of = u32::from_be_bytes(self.receiver.array()?);
            let kind = u32::from_be_bytes(self.receiver.array()?);
            let len = u32::from_be_bytes(self.receiver.array()?);
            if magic != OPTION_REPLY_MAGIC || of != option || len > REPLY_MAX {
                return Err(broken("the server's reply to an option is wrong"));
            }
            let mut data = vec![0; len as usize];
            self.receiver.exact(&mut data)?;
            if kind & reply::ERROR != 0 {
                self.refusal = Some((kind, String::from_utf8_lossy(&data).escape_debug().to_string()));
                return Ok(None);
            }
            if kind == reply::ACK {
                return Ok(Some(replies));
            }
            replies.push((kind, data));
        }
        Err(broken("the server's reply to an option does not end"))
    }

    fn refused(&self, what: &str) -> Error {
        let Some((number, says)) = &self.refusal else { return Error::other(what.to_owned()) };
        let name = match *number {
            reply::ERR_TLS_REQD => "it demands TLS: use nbds:// or nbds+unix://",
            reply::ERR_UNKNOWN => "it has no export of this name",
            reply::ERR_POLICY => "its administrator does not allow it",
            _ => "it refuses",
        };
        let says = if says.is_empty() { String::new() } else { format!(" ({says})") };
        Error::other(format!("{what}: {name}{says}"))
    }

    fn choose(&mut self, export: &str, no_zeroes: bool) -> Result<Choice> {
        let structured = self.ask(option::STRUCTURED_REPLY, &[])?.is_some();
        if self.refusal.as_ref().is_some_and(|(number, _)| *number == reply::ERR_TLS_REQD) {
            return Err(self.refused("no export"));
        }
        let allocation = if structured { self.allocation(export)? } else { None };
        let mut wish = Vec::new();
        put_string(&mut wish, export);
        wish.extend_from_slice(&1_u16.to_be_bytes());
        wish.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        let Some(replies) = self.ask(option::GO, &wish)? else {
            return match self.refusal {
                Some((reply::ERR_UNSUP, _)) => {
                    self.refusal = None;
                    let (size, flags) = self.export_name(export, no_zeroes)?;
                    Ok((size, flags, 1, PAYLOAD_MAX, structured, None))
                }
                _ => Err(self.refused(&format!("no export {export:?}"))),
            };
        };
        self.refusal = None;
        let (mut about, mut block, mut longest) = (None, 1, PAYLOAD_MAX);
        for (kind, data) in &replies {
            let mut fields = Fields(data);
            match (*kind, fields.u16()) {
                (reply::INFO, Some(info::EXPORT)) => about = fields.u64().zip(fields.u16()),
                (reply::INFO, Some(info::BLOCK_SIZE)) => {
                    let sizes = fields.u32().zip(fields.u32()).zip(fields.u32());
                    let ((least, _), most) =
                        sizes.ok_or_else(|| broken("the server's block sizes are wrong"))?;
                    (block, longest) = (least, most.min(PAYLOAD_MAX));
                }
                _ => {}
            }
        }
        let (size, flags) = about.ok_or_else(|| broken("the server does not say the export's size"))?;
        if !block.is_power_of_two() || block > 65536 || longest < block {
            return Err(broken("the server's block sizes are wrong"));
        }
        longest -= longest % block;
        Ok((size, flags, block, longest, structured, allocation))
    }

    fn allocation(&mut self, export: &str) -> Result<Option<u32>> {
        let mut query = Vec::new();
        put_string(&mut query, export);
        query.extend_from_slice(&1_u32.to_be_bytes());
        put_string(&mut query, "base:allocation");
        let replies = self.ask(option::SET_META_CONTEXT, &query)?.unwrap_or_default();
        let context = replies.iter().find(|(kind, _)| *kind == reply::META_CONTEXT);
        Ok(context.and_then(|(_, data)| Fields(data).u32()))
    }

    fn export_name(&mut self, export: &str, no_zeroes: bool) -> Result<(u64, u16)> {
        self.say(option::EXPORT_NAME, export.as_bytes())?;
        let size = u64::from_be_bytes(self.receiver.array()?);
        let flags = u16::from_be_bytes(self.receiver.array()?);
        if !no_zeroes {
            self.receiver.skip(124)?;
        }
        Ok((size, flags | flag::HAS_FLAGS))
    }
}

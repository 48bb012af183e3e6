//! The server's side of the handshake: options until the client has chosen an export.

use super::Shared;
use super::export::{BLOCK_MIN, Context, Export};
use crate::protocol::{
    Fields, INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_MAX, STRING_MAX, handshake, info, option,
    put_string, reply,
};
use crate::wire::{Receiver, Wire};
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::sync::Arc;

/// Longest data of an option that is looked at.
const OPTION_MAX: u32 = 64 << 10;
/// Longest data of an option that is skipped; a client with more is no client.
const SKIP_MAX: u32 = 1 << 20;
/// Most metadata contexts a client asks for at once.
const QUERIES_MAX: u32 = 256;

/// What client and server agreed on.
pub struct Agreed {
    pub export: Arc<Export>,
    /// Structured replies.
    pub structured: bool,
    /// In the order in which they are answered.
    pub contexts: Vec<Context>,
    pub receiver: Receiver,
}

struct Handshake<'a> {
    shared: &'a Shared,
    receiver: Receiver,
    /// The client understands replies to options.
    fixed: bool,
    no_zeroes: bool,
    secure: bool,
    structured: bool,
    /// Chosen by `NBD_OPT_SET_META_CONTEXT`, for the export of this name.
    contexts: Option<(String, Vec<Context>)>,
}

/// What an option leads to.
enum Next {
    Option,
    /// The client said farewell.
    End,
    Transmission(Arc<Export>),
}

/// Lets a client choose. `None`: it left in order.
pub fn negotiate(shared: &Shared, wire: Arc<dyn Wire>) -> Result<Option<Agreed>> {
    let flags = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
    let mut hello = Vec::with_capacity(18);
    hello.extend_from_slice(&INIT_MAGIC.to_be_bytes());
    hello.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    hello.extend_from_slice(&flags.to_be_bytes());
    wire.send(&mut [IoSlice::new(&hello)])?;
    let mut receiver = Receiver::new(wire);
    let mut answer = [0; 4];
    if !receiver.exact_or_end(&mut answer)? {
        return Ok(None);
    }
    let answer = u32::from_be_bytes(answer);
    if answer & !u32::from(flags) != 0 {
        return Err(broken("unknown handshake flags"));
    }
    let mut handshake = Handshake {
        shared,
        receiver,
        fixed: answer & u32::from(handshake::FIXED_NEWSTYLE) != 0,
        no_zeroes: answer & u32::from(handshake::NO_ZEROES) != 0,
        secure: false,
        structured: false,
        contexts: None,
    };
    loop {
        match handshake.option()? {
            Next::Option => {}
            Next::End => return Ok(None),
            Next::Transmission(export) => {
                let Handshake { structured, contexts, receiver, .. } = handshake;
                let contexts = contexts.filter(|(name, _)| *name == export.name);
                let contexts = contexts.map(|(_, contexts)| contexts).unwrap_or_default();
                return Ok(Some(Agreed { export, structured, contexts, receiver }));
            }
        }
    }
}

fn broken(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

impl Handshake<'_> {
    fn option(&mut self) -> Result<Next> {
        let mut magic = [0; 8];
        if !self.receiver.exact_or_end(&mut magic)? {
            return Ok(Next::End);
        }
        if u64::from_be_bytes(magic) != OPTION_MAGIC {
            return Err(broken("an option without its magic number"));
        }
        let kind = u32::from_be_bytes(self.receiver.array()?);
        let len = u32::from_be_bytes(self.receiver.array()?);
        if len > SKIP_MAX {
            return Err(broken("an option of more than 1 MiB"));
        }
        if len > OPTION_MAX {
            self.receiver.skip(len.into())?;
            return self.refuse(kind, reply::ERR_TOO_BIG, "an option has at most 64 KiB");
        }
        let mut data = vec![0; len as usize];
        self.receiver.exact(&mut data)?;
        if !self.fixed && kind != option::EXPORT_NAME {
            return Err(broken("an option of a client that does not understand replies"));
        }
        if self.shared.options.tls.is_some()
            && !self.secure
            && !matches!(kind, option::STARTTLS | option::ABORT)
        {
            if kind == option::EXPORT_NAME {
                return Err(broken("an export without TLS"));
            }
            return self.refuse(kind, reply::ERR_TLS_REQD, "begin with STARTTLS");
        }
        match kind {
            option::EXPORT_NAME => self.export_name(&data),
            option::ABORT => {
                // The client may be gone already, which is what it asked for.
                let _ = self.reply(kind, reply::ACK, &[]);
                Ok(Next::End)
            }
            option::LIST => self.list(&data),
            option::STARTTLS => self.start_tls(&data),
            option::INFO | option::GO => self.info_or_go(kind, &data),
            option::STRUCTURED_REPLY => {
                if !data.is_empty() || self.structured {
                    return self.refuse(kind, reply::ERR_INVALID, "once, and without data");
                }
                self.structured = true;
                self.done(kind)
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(kind, &data),
            _ => self.refuse(kind, reply::ERR_UNSUP, "this option is not known here"),
        }
    }

    fn reply(&self, option: u32, kind: u32, data: &[u8]) -> Result<()> {
        let mut header = Vec::with_capacity(20);
        header.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        header.extend_from_slice(&option.to_be_bytes());
        header.extend_from_slice(&kind.to_be_bytes());
        header.extend_from_slice(&(data.len() as u32).to_be_bytes());
        self.receiver.wire().send(&mut [IoSlice::new(&header), IoSlice::new(data)])
    }

    fn done(&self, option: u32) -> Result<Next> {
        self.reply(option, reply::ACK, &[])?;
        Ok(Next::Option)
    }

    fn refuse(&self, option: u32, error: u32, why: &str) -> Result<Next> {
        self.reply(option, error, why.as_bytes())?;
        Ok(Next::Option)
    }

    fn find(&self, name: &str) -> Option<Arc<Export>> {
        self.shared.options.exports.iter().find(|export| export.name == name).cloned()
    }

    /// The old way to choose: there is no reply that could be an error.
    fn export_name(&mut self, data: &[u8]) -> Result<Next> {
        let name = std::str::from_utf8(data).ok().filter(|name| name.len() <= STRING_MAX);
        let export = name.and_then(|name| self.find(name)).ok_or_else(|| broken("an unknown export"))?;
        let mut answer = Vec::with_capacity(134);
        answer.extend_from_slice(&export.disk.size().to_be_bytes());
        answer.extend_from_slice(&self.flags(&export).to_be_bytes());
        if !self.no_zeroes {
            answer.resize(134, 0);
        }
        self.receiver.wire().send(&mut [IoSlice::new(&answer)])?;
        Ok(Next::Transmission(export))
    }

    fn flags(&self, export: &Export) -> u16 {
        export.flags(self.structured, self.shared.options.connections > 1)
    }

    fn list(&self, data: &[u8]) -> Result<Next> {
        if !data.is_empty() {
            return self.refuse(option::LIST, reply::ERR_INVALID, "without data");
        }
        for export in &self.shared.options.exports {
            let mut entry = Vec::new();
            put_string(&mut entry, &export.name);
            entry.extend_from_slice(export.description.as_bytes());
            self.reply(option::LIST, reply::SERVER, &entry)?;
        }
        self.done(option::LIST)
    }

    fn start_tls(&mut self, data: &[u8]) -> Result<Next> {
        let kind = option::STARTTLS;
        if !data.is_empty() || self.secure {
            return self.refuse(kind, reply::ERR_INVALID, "once, and without data");
        }
        let Some(tls) = &self.shared.options.tls else {
            return self.refuse(kind, reply::ERR_POLICY, "this server has no certificate");
        };
        // What came in clear text must not count as said under TLS.
        if !self.receiver.ready().is_empty() {
            return Err(broken("data between STARTTLS and its reply"));
        }
        self.reply(kind, reply::ACK, &[])?;
        let wire = self.receiver.wire().start_tls(tls)?;
        self.receiver = Receiver::new(wire);
        self.secure = true;
        // "any previously negotiated options" are void.
        self.structured = false;
        self.contexts = None;
        Ok(Next::Option)
    }

    fn info_or_go(&mut self, kind: u32, data: &[u8]) -> Result<Next> {
        let mut fields = Fields(data);
        let Some((name, wanted)) = parse_info(&mut fields) else {
            return self.refuse(kind, reply::ERR_INVALID, "a name and a list of information is needed");
        };
        let Some(export) = self.find(name) else {
            return self.refuse(kind, reply::ERR_UNKNOWN, "there is no export of this name");
        };
        let mut about = info::EXPORT.to_be_bytes().to_vec();
        about.extend_from_slice(&export.disk.size().to_be_bytes());
        about.extend_from_slice(&self.flags(&export).to_be_bytes());
        self.reply(kind, reply::INFO, &about)?;
        let text = |item: u16, text: &str| [&item.to_be_bytes(), text.as_bytes()].concat();
        if wanted.contains(&info::NAME) {
            self.reply(kind, reply::INFO, &text(info::NAME, &export.name))?;
        }
        if wanted.contains(&info::DESCRIPTION) && !export.description.is_empty() {
            self.reply(kind, reply::INFO, &text(info::DESCRIPTION, &export.description))?;
        }
        // Unasked as well: who does not look at it finds out from the first EINVAL only.
        let mut sizes = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [BLOCK_MIN, export.preferred_block, PAYLOAD_MAX] {
            sizes.extend_from_slice(&size.to_be_bytes());
        }
        self.reply(kind, reply::INFO, &sizes)?;
        self.reply(kind, reply::ACK, &[])?;
        Ok(if kind == option::GO { Next::Transmission(export) } else { Next::Option })
    }

    fn meta_context(&mut self, kind: u32, data: &[u8]) -> Result<Next> {
        if kind == option::SET_META_CONTEXT {
            // What was chosen before does not outlive a new question, not even a refused one.
            self.contexts = None;
            if !self.structured {
                return self.refuse(kind, reply::ERR_INVALID, "structured replies come first");
            }
        }
        let mut fields = Fields(data);
        let Some((name, queries)) = parse_queries(&mut fields) else {
            let why = "a name and at most 256 queries are needed";
            return self.refuse(kind, reply::ERR_INVALID, why);
        };
        let Some(export) = self.find(name) else {
            return self.refuse(kind, reply::ERR_UNKNOWN, "there is no export of this name");
        };
        let listing = kind == option::LIST_META_CONTEXT;
        let asked = |name: &str| {
            (listing && queries.is_empty())
                || queries.iter().any(|query| {
                    *query == name || (listing && query.ends_with(':') && name.starts_with(query))
                })
        };
        let mut chosen = Vec::new();
        for (context, name) in export.contexts().filter(|(_, name)| asked(name)) {
            let mut answer = context.id().to_be_bytes().to_vec();
            answer.extend_from_slice(name.as_bytes());
            self.reply(kind, reply::META_CONTEXT, &answer)?;
            chosen.push(context);
        }
        if !listing {
            self.contexts = Some((export.name.clone(), chosen));
        }
        self.done(kind)
    }
}

fn parse_info<'a>(fields: &mut Fields<'a>) -> Option<(&'a str, Vec<u16>)> {
    let name = fields.string()?;
    let count = fields.u16()?;
    let wanted = (0..count).map(|_| fields.u16()).collect::<Option<_>>()?;
    fields.is_empty().then_some((name, wanted))
}

fn parse_queries<'a>(fields: &mut Fields<'a>) -> Option<(&'a str, Vec<&'a str>)> {
    let name = fields.string()?;
    let count = fields.u32().filter(|count| *count <= QUERIES_MAX)?;
    let queries = (0..count).map(|_| fields.string()).collect::<Option<_>>()?;
    fields.is_empty().then_some((name, queries))
}

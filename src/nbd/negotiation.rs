//! The handshake: options of fixed newstyle, until the client goes on, asks for TLS or gives
//! up. After STARTTLS it begins anew over TLS: what was agreed before went with it.
//!
//! Bytes are read exactly as far as each message reaches, so whatever takes over the stream
//! afterwards finds all that belongs to it. Memory is bounded by [`MAX_OPTION_DATA`]; time is
//! bounded by whoever made the stream. Nothing locks.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::ConnectionError;
use super::export::{Export, MetaContext, MetaContexts};
use super::wire::{
    Fields, IHAVEOPT, MAX_PAYLOAD, MAX_STRING, MIN_BLOCK, NBDMAGIC, OPTION_REPLY_MAGIC,
    PREFERRED_BLOCK, handshake, info, opt, rep,
};

/// Most bytes of data that an option may carry: a name, and queries or requests by the hundred.
const MAX_OPTION_DATA: usize = 64 << 10;

/// What the two sides agreed on before transmission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreement {
    pub(super) structured: bool,
    pub(super) contexts: MetaContexts,
}

/// Where a connection stands with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Security {
    /// There is none to be had.
    Unavailable,
    /// The client may ask for it.
    Offered,
    /// The client can do nothing until it asks for it.
    Required,
    /// It is there.
    Established,
}

/// How the handshake ends.
pub(super) enum Outcome {
    Transmit(Agreement),
    /// The next byte is the first of the TLS handshake, either way.
    StartTls,
    GiveUp,
}

/// What the handshake depends on.
#[derive(Clone, Copy)]
pub(super) struct Handshake<'a> {
    pub(super) export: &'a Export,
    pub(super) client: ClientFlags,
    pub(super) security: Security,
    /// Once this is set, options are refused.
    pub(super) stopping: &'a AtomicBool,
}

impl Handshake<'_> {
    /// Answers options as the server, with nothing agreed on so far.
    pub(super) fn run<S: Read + Write>(self, stream: &mut S) -> Result<Outcome, ConnectionError> {
        let mut state = HandshakeState {
            terms: self,
            agreement: Agreement::default(),
            data: Vec::new(),
            out: Vec::new(),
        };
        loop {
            let step = state.option(stream);
            // Also what an option that is refused for good has to say.
            stream.write_all(&state.out)?;
            match step? {
                Step::Next => {}
                Step::Transmit => return Ok(Outcome::Transmit(state.agreement)),
                Step::StartTls => return Ok(Outcome::StartTls),
                Step::GiveUp => return Ok(Outcome::GiveUp),
            }
        }
    }
}

/// What the client's flags say.
#[derive(Clone, Copy)]
pub(super) struct ClientFlags {
    fixed_newstyle: bool,
    no_zeroes: bool,
}

/// Exchanges the flags of both sides, which are never sent again.
pub(super) fn greet<S: Read + Write>(stream: &mut S) -> Result<ClientFlags, ConnectionError> {
    let offered = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
    let mut greeting = [0; 18];
    greeting[..8].copy_from_slice(&NBDMAGIC.to_be_bytes());
    greeting[8..16].copy_from_slice(&IHAVEOPT.to_be_bytes());
    greeting[16..].copy_from_slice(&offered.to_be_bytes());
    stream.write_all(&greeting)?;

    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    let flags = u32::from_be_bytes(flags);
    if flags & !u32::from(offered) != 0 {
        return Err(ConnectionError::Protocol(
            "a client flag that was not offered",
        ));
    }
    Ok(ClientFlags {
        fixed_newstyle: flags & u32::from(handshake::FIXED_NEWSTYLE) != 0,
        no_zeroes: flags & u32::from(handshake::NO_ZEROES) != 0,
    })
}

/// What follows an option.
enum Step {
    Next,
    Transmit,
    StartTls,
    GiveUp,
}

/// Why an option is refused: the reply type, and a word to the user.
struct Refusal(u32, &'static str);

const MALFORMED: Refusal = Refusal(rep::ERR_INVALID, "the option's data is malformed");
const UNKNOWN_EXPORT: Refusal = Refusal(rep::ERR_UNKNOWN, "there is no export of that name");
const LONG_STRING: Refusal = Refusal(rep::ERR_TOO_BIG, "strings are at most 4096 bytes");

struct HandshakeState<'a> {
    terms: Handshake<'a>,
    agreement: Agreement,
    /// The data of the option at hand.
    data: Vec<u8>,
    /// All replies to the option at hand.
    out: Vec<u8>,
}

impl HandshakeState<'_> {
    /// Reads one option and leaves what answers it in `out`.
    fn option<S: Read>(&mut self, stream: &mut S) -> Result<Step, ConnectionError> {
        self.out.clear();
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let mut fields = Fields(&header);
        let (Some(magic), Some(option), Some(length)) = (fields.u64(), fields.u32(), fields.u32())
        else {
            unreachable!("a header has 16 bytes")
        };
        if magic != IHAVEOPT {
            return Err(ConnectionError::Protocol("an option without its magic"));
        }
        if !self.terms.client.fixed_newstyle && option != opt::EXPORT_NAME {
            return Err(ConnectionError::Protocol(
                "an option of fixed newstyle without its flag",
            ));
        }
        self.take_data(stream, option, length)?;

        let stopping = self.terms.stopping.load(Ordering::Acquire);
        let required = self.terms.security == Security::Required;
        match option {
            opt::EXPORT_NAME if stopping => Ok(Step::GiveUp),
            // This option has no reply but success.
            opt::EXPORT_NAME if required => {
                Err(ConnectionError::Protocol("no TLS, which is required"))
            }
            opt::EXPORT_NAME => self.export_name(),
            opt::ABORT => {
                self.reply(option, rep::ACK, &[]);
                Ok(Step::GiveUp)
            }
            _ if stopping => {
                let refusal = Refusal(rep::ERR_SHUTDOWN, "the server is shutting down");
                self.refuse(option, &refusal);
                Ok(Step::Next)
            }
            opt::STARTTLS => Ok(self.start_tls()),
            _ if required => {
                self.refuse(option, &Refusal(rep::ERR_TLS_REQD, "TLS comes first"));
                Ok(Step::Next)
            }
            _ => Ok(self.answer(option)),
        }
    }

    /// Reads an option's data, or hangs up on one that nobody sends in earnest.
    fn take_data<S: Read>(
        &mut self,
        stream: &mut S,
        option: u32,
        length: u32,
    ) -> Result<(), ConnectionError> {
        let length = length as usize;
        if option == opt::EXPORT_NAME && length > MAX_STRING {
            // This option has no reply but success.
            return Err(ConnectionError::Protocol("an export name over 4096 bytes"));
        }
        if length > MAX_OPTION_DATA {
            let refusal = Refusal(rep::ERR_TOO_BIG, "options are at most 64 KiB");
            self.refuse(option, &refusal);
            return Err(ConnectionError::Protocol("an option over 64 KiB"));
        }
        self.data.clear();
        self.data.resize(length, 0);
        stream.read_exact(&mut self.data)?;
        Ok(())
    }

    /// Answers an option of fixed newstyle.
    fn answer(&mut self, option: u32) -> Step {
        let data = std::mem::take(&mut self.data);
        let answered = match option {
            opt::LIST => self.list(&data),
            opt::INFO | opt::GO => self.info(option, &data),
            opt::STRUCTURED_REPLY => self.structured_reply(&data),
            opt::LIST_META_CONTEXT => self.list_meta_context(&data),
            opt::SET_META_CONTEXT => self.set_meta_context(&data),
            _ => Err(Refusal(rep::ERR_UNSUP, "the option is not supported")),
        };
        self.data = data;
        match answered {
            Ok(()) => {
                self.reply(option, rep::ACK, &[]);
                if option == opt::GO {
                    return Step::Transmit;
                }
            }
            Err(refusal) => self.refuse(option, &refusal),
        }
        Step::Next
    }

    fn start_tls(&mut self) -> Step {
        let refusal = match self.terms.security {
            Security::Unavailable => Refusal(rep::ERR_POLICY, "this server has no TLS"),
            Security::Established => Refusal(rep::ERR_INVALID, "TLS is there already"),
            _ if !self.data.is_empty() => Refusal(rep::ERR_INVALID, "STARTTLS carries no data"),
            Security::Offered | Security::Required => {
                self.reply(opt::STARTTLS, rep::ACK, &[]);
                return Step::StartTls;
            }
        };
        self.refuse(opt::STARTTLS, &refusal);
        Step::Next
    }

    fn export_name(&mut self) -> Result<Step, ConnectionError> {
        if !self.terms.export.answers_to(&self.data) {
            return Err(ConnectionError::Protocol("there is no export of that name"));
        }
        let flags = self.transmission_flags();
        self.out
            .extend(self.terms.export.device.size().to_be_bytes());
        self.out.extend(flags.to_be_bytes());
        if !self.terms.client.no_zeroes {
            self.out.extend([0; 124]);
        }
        Ok(Step::Transmit)
    }

    fn list(&mut self, data: &[u8]) -> Result<(), Refusal> {
        if !data.is_empty() {
            return Err(Refusal(rep::ERR_INVALID, "LIST carries no data"));
        }
        let name = self.terms.export.name.as_bytes();
        let length = name.len() as u32;
        self.reply(opt::LIST, rep::SERVER, &[&length.to_be_bytes(), name]);
        Ok(())
    }

    fn structured_reply(&mut self, data: &[u8]) -> Result<(), Refusal> {
        if !data.is_empty() {
            return Err(Refusal(
                rep::ERR_INVALID,
                "STRUCTURED_REPLY carries no data",
            ));
        }
        self.agreement.structured = true;
        Ok(())
    }

    fn info(&mut self, option: u32, data: &[u8]) -> Result<(), Refusal> {
        let mut fields = Fields(data);
        let name = fields.string().ok_or(MALFORMED)?;
        let count = fields.u16().ok_or(MALFORMED)?;
        let requests = fields.0;
        if requests.len() != 2 * usize::from(count) {
            return Err(MALFORMED);
        }
        self.check_name(name)?;

        let asked = |kind: u16| requests.chunks_exact(2).any(|r| r == kind.to_be_bytes());
        let size = self.terms.export.device.size().to_be_bytes();
        let flags = self.transmission_flags().to_be_bytes();
        self.information(option, info::EXPORT, &[&size, &flags]);
        if asked(info::NAME) {
            let name = self.terms.export.name.as_bytes();
            self.information(option, info::NAME, &[name]);
        }
        if asked(info::DESCRIPTION) {
            let text = b"a block device compressed in memory";
            self.information(option, info::DESCRIPTION, &[text]);
        }
        if asked(info::BLOCK_SIZE) {
            let sizes = [MIN_BLOCK, PREFERRED_BLOCK, MAX_PAYLOAD].map(u32::to_be_bytes);
            self.information(option, info::BLOCK_SIZE, &[sizes.as_flattened()]);
        }
        Ok(())
    }

    fn list_meta_context(&mut self, data: &[u8]) -> Result<(), Refusal> {
        let mut found = MetaContexts::default();
        let queries = self.queries(data, |query| {
            for context in MetaContext::ALL {
                if query == context.name().as_bytes() || query == context.namespace().as_bytes() {
                    found.insert(context);
                }
            }
        })?;
        for context in MetaContext::ALL {
            if queries == 0 || found.contains(context) {
                self.meta_context(opt::LIST_META_CONTEXT, 0, context);
            }
        }
        Ok(())
    }

    fn set_meta_context(&mut self, data: &[u8]) -> Result<(), Refusal> {
        // Whatever was selected before is gone even when this fails.
        self.agreement.contexts = MetaContexts::default();
        if !self.agreement.structured {
            return Err(Refusal(rep::ERR_INVALID, "structured replies come first"));
        }
        let mut selected = MetaContexts::default();
        self.queries(data, |query| {
            for context in MetaContext::ALL {
                if query == context.name().as_bytes() {
                    selected.insert(context);
                }
            }
        })?;
        for context in selected.iter() {
            self.meta_context(opt::SET_META_CONTEXT, context as u32, context);
        }
        self.agreement.contexts = selected;
        Ok(())
    }

    /// Checks the data of a metadata option and visits its queries; returns how many there are.
    /// A query that matches nothing is ignored.
    fn queries(&self, data: &[u8], mut visit: impl FnMut(&[u8])) -> Result<u32, Refusal> {
        let mut fields = Fields(data);
        let name = fields.string().ok_or(MALFORMED)?;
        let count = fields.u32().ok_or(MALFORMED)?;
        self.check_name(name)?;
        for _ in 0..count {
            let query = fields.string().ok_or(MALFORMED)?;
            if query.len() > MAX_STRING {
                return Err(LONG_STRING);
            }
            visit(query);
        }
        if fields.0.is_empty() {
            Ok(count)
        } else {
            Err(MALFORMED)
        }
    }

    fn check_name(&self, name: &[u8]) -> Result<(), Refusal> {
        if name.len() > MAX_STRING {
            Err(LONG_STRING)
        } else if self.terms.export.answers_to(name) {
            Ok(())
        } else {
            Err(UNKNOWN_EXPORT)
        }
    }

    fn transmission_flags(&self) -> u16 {
        self.terms
            .export
            .transmission_flags(self.agreement.structured)
    }

    fn meta_context(&mut self, option: u32, id: u32, context: MetaContext) {
        let name = context.name().as_bytes();
        self.reply(option, rep::META_CONTEXT, &[&id.to_be_bytes(), name]);
    }

    fn information(&mut self, option: u32, kind: u16, payload: &[&[u8]]) {
        let kind = kind.to_be_bytes();
        let parts: Vec<&[u8]> = std::iter::once(&kind[..])
            .chain(payload.iter().copied())
            .collect();
        self.reply(option, rep::INFO, &parts);
    }

    fn refuse(&mut self, option: u32, refusal: &Refusal) {
        self.reply(option, refusal.0, &[refusal.1.as_bytes()]);
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[&[u8]]) {
        let length: usize = data.iter().map(|part| part.len()).sum();
        self.out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        self.out.extend(option.to_be_bytes());
        self.out.extend(kind.to_be_bytes());
        self.out.extend((length as u32).to_be_bytes());
        for part in data {
            self.out.extend_from_slice(part);
        }
    }
}

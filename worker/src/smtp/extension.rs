//! Extensions of SMTP that a host may offer and not keep, and what is known of a host that does so.

/// What a client may use when a host offers it, and can do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// PIPELINING (RFC 2920)
    Pipelining,
    /// CHUNKING (RFC 3030)
    Chunking,
    /// Parameters of MAIL and RCPT: SIZE, BODY, DSN's
    Parameters,
}

/// What is known of one host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lesson {
    /// PIPELINING is not used.
    pub without_pipelining: bool,
    /// CHUNKING is not used.
    pub without_chunking: bool,
    /// Parameters are not used.
    pub without_parameters: bool,
    /// Recipients that it takes in a transaction; 0 where it is not known.
    pub recipients_max: u16,
    /// Refusals after which it ends a session; 0 where it is not known.
    pub refusals_max: u16,
}

impl Lesson {
    /// An extension is not used any more.
    pub fn leave_out(&mut self, e: Extension) {
        match e {
            Extension::Pipelining => self.without_pipelining = true,
            Extension::Chunking => self.without_chunking = true,
            Extension::Parameters => self.without_parameters = true,
        }
    }
}

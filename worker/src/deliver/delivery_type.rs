//! By what means mail leaves: the values of `type`.

/// How mail leaves, in the order of the values of `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// To a receiver.
    Smtp,
    /// Into a program, one process for each recipient.
    Pipe,
    /// Into a file for each recipient, or at the end of one.
    File,
    /// Nowhere.
    Discard,
    /// By HTTP; not in force.
    Http,
}

impl Type {
    /// By the value of the directive.
    pub fn of(n: u64) -> Type {
        [Type::Smtp, Type::Pipe, Type::File, Type::Discard, Type::Http].get(n as usize).copied().unwrap_or(Type::Smtp)
    }

    /// As accounting names it.
    pub fn name(self) -> &'static str {
        match self {
            Type::Smtp => "smtp",
            Type::Pipe => "pipe",
            Type::File => "file",
            Type::Discard => "discard",
            Type::Http => "http-delivery",
        }
    }
}

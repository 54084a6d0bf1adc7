//! Once per message: read the header, take out what was meant for us, add trace, date and
//! identity. The content is not copied: what changes becomes a new first piece, the rest
//! stays where it was received.

pub mod aliases;
pub mod content;
pub mod feedback_headers;
pub mod headers;
pub mod kept;
pub mod message;
pub mod pattern_list;
pub mod recipients;
pub mod rewrite_list;
pub mod schedule_field;
pub mod vmta_name;

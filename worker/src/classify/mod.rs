//! What a reply means for the recipient and for the sender's statistics.

pub mod bounce_category;
pub mod bounce_rules;
pub mod expression;
pub mod health;
pub mod outcome;
pub mod reply_patterns;
pub mod reply_rules;
pub mod reply_text;
mod required_literals;

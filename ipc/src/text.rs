//! Text of strangers, made fit to be shown: cleaned once where it enters, it is harmless wherever it is written later, in
//! accounting files, listings, logs and replies.

use std::borrow::Cow;

/// What stands in place of a character that is not shown.
pub const REPLACEMENT: char = '?';

/// Longest name of a virtual MTA or pool that mail may choose, bytes.
pub const VMTA_NAME_MAX: usize = 255;

/// Longest name of a job, bytes.
pub const JOB_NAME_MAX: usize = 200;

/// Longest EHLO keyword of a receiver that is kept, bytes; and all of them together.
pub const KEYWORD_MAX: usize = 64;
/// See [`KEYWORD_MAX`].
pub const KEYWORDS_MAX: usize = 1000;

/// Whether a character would do something to a terminal, or change how the text around it is read: controls (C0, DEL, C1),
/// ends of lines and paragraphs, what changes the direction of writing, tags and annotations. Characters without width that
/// people do write (U+200B to U+200D, U+FEFF) are fine.
pub fn is_unfit(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    matches!(c,
        '\u{80}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{206f}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// Every character is fit to be shown.
pub fn is_fit(text: &str) -> bool {
    !text.contains(is_unfit)
}

/// The text with a blank for each tab and [`REPLACEMENT`] for any other character that is not fit, cut where it is longer than
/// `max` bytes.
pub fn clean(text: &str, max: usize) -> Cow<'_, str> {
    let text = &text[..text.floor_char_boundary(max)];
    if is_fit(text) {
        return Cow::Borrowed(text);
    }
    let one = |c| match c {
        '\t' => ' ',
        c if is_unfit(c) => REPLACEMENT,
        c => c,
    };
    Cow::Owned(text.chars().map(one).collect())
}

/// The same of bytes, which may be no UTF-8: U+FFFD stands for what is none.
pub fn clean_bytes(bytes: &[u8], max: usize) -> String {
    // Of the rest nothing would be left, and it may be long.
    let bytes = &bytes[..bytes.len().min(max)];
    clean(&String::from_utf8_lossy(bytes), max).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_terminals_obey_is_replaced() {
        assert_eq!(clean("a\x1b[31mb\x07\u{9b}2Jc\td\r\n", 99), "a?[31mb??2Jc d??");
        assert_eq!(clean("\u{202e}txt.exe\u{2066}\u{2028}\u{200f}", 99), "?txt.exe???");
        let fine = "gr\u{fc}\u{df}e \u{1f468}\u{200d}\u{1f469} \u{645}\u{200c}\u{627}";
        assert_eq!(clean(fine, 99), fine);
        assert_eq!(clean("\u{fc}\u{fc}", 3), "\u{fc}");
        assert_eq!(clean_bytes(b"\xff\xfea", 99), "\u{fffd}\u{fffd}a");
    }

    proptest! {
        #[test]
        fn any_text_becomes_fit_and_stays_what_it_is(text in "(\\PC|\\p{C}|[\u{0}-\u{ff}\u{2000}-\u{2070}]){0,40}", max in 0usize..80) {
            let cleaned = clean(&text, max).into_owned();
            prop_assert!(is_fit(&cleaned) && cleaned.len() <= max);
            prop_assert_eq!(&*clean(&cleaned, max), cleaned.as_str());
            // What was fit is untouched, in its place.
            for (a, b) in text.chars().zip(cleaned.chars()) {
                prop_assert!(a == b || is_unfit(a));
            }
            if is_fit(&text) && text.len() <= max {
                prop_assert_eq!(cleaned, text);
            }
        }

        #[test]
        fn any_bytes_become_fit(bytes in proptest::collection::vec(any::<u8>(), 0..60), max in 0usize..80) {
            let cleaned = clean_bytes(&bytes, max);
            prop_assert!(is_fit(&cleaned) && cleaned.len() <= max);
        }
    }
}

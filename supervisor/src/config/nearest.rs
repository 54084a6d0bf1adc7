//! Names that were probably meant by one that there is not.

/// Bytes of a word that may be meant to be a name.
const NAME_BYTES_MAX: usize = 64;

/// The name among `all` that `word` was probably meant to be.
pub fn nearest<'a>(word: &str, all: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > NAME_BYTES_MAX {
        return None;
    }
    let limit = 1 + word.len() / 4;
    let near = all.filter(|n| n.len().abs_diff(word.len()) <= limit).map(|n| (distance(word, n), n));
    near.filter(|(d, _)| *d <= limit).min().map(|(_, n)| n)
}

/// The end of a sentence that says `word` is no name: which of `all` was probably meant; empty where none is near.
pub fn perhaps<'a>(word: &str, all: impl Iterator<Item = &'a str>) -> String {
    nearest(word, all).map(|n| format!("; did you mean {n}?")).unwrap_or_default()
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_words_are_not_compared() {
        assert_eq!(nearest(&"a".repeat(1 << 20), ["b".repeat(1 << 20).as_str()].into_iter()), None);
    }
}

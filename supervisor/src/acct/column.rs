//! Names of columns as operators write them.

/// The column that a word means: PowerMTA's short names for some, anything else as it is.
pub fn column(word: &str) -> String {
    match word.to_ascii_lowercase().as_str() {
        "to" => "rcpt".into(),
        "from" => "orig".into(),
        "dstip" => "dlvDestinationIp".into(),
        "timedelivered" => "timeLogged".into(),
        lower => match lower.strip_prefix("header:") {
            Some(_) => format!("header_{}", &word["header:".len()..]),
            None => word.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_stand_for_columns() {
        assert_eq!(
            (column("To"), column("header:X-a"), column("queue")),
            ("rcpt".into(), "header_X-a".into(), "queue".into())
        );
    }
}

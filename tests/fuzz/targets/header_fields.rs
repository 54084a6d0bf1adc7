//! Fields of a message that are read and written: windows of delivery, and addresses of From.
#![no_main]

use ipc::snapshot::{ArchivedRewriteList, RewriteList as Configured};
use ipc::windows::Windows;
use libfuzzer_sys::fuzz_target;
use worker::prepare::headers::{self, edit};
use worker::prepare::rewrite_list::RewriteList;
use worker::prepare::schedule_field;

thread_local! {
    static LIST: RewriteList = {
        let one = |a: &str, b: &str| vec![(a.to_owned(), b.to_owned())];
        let list = Configured {
            name: "l".into(),
            senders: one("*@*", "*@n.test"),
            from_domains: one("[*.]o.t", "n.test"),
        };
        let archive = ipc::frame::archive(&list);
        let list = rkyv::access::<ArchivedRewriteList, rkyv::rancor::Error>(&archive).expect("an archive");
        RewriteList::of(list)
    };
}

fuzz_target!(|input: &[u8]| {
    if let Ok(windows) = schedule_field::windows(input, 5_000, 1_000_000_000_000) {
        assert_eq!(Windows::of_kept(&windows.kept()).as_ref(), Some(&windows));
        assert!(windows.next(1_000_000_000).is_some() && windows.ends_s().is_some_and(|end| end > 1_000_000_000));
    }
    let message = [b"From:", input, b"\r\n\r\n"].concat();
    let (fields, end) = headers::parse(&message);
    LIST.with(|list| {
        let edits: Vec<_> = list.changed(&fields).map(|(f, value)| (f.place_of_value(), value)).collect();
        let mut out = Vec::new();
        edit(&message[..end], &edits, &mut out);
        // Only domains become others: so many fields are left, with the same names.
        let again = headers::parse(&out).0;
        let names = |all: &[headers::Field<'_>]| all.iter().map(|f| f.name.to_owned()).collect::<Vec<_>>();
        assert_eq!(names(&fields), names(&again));
    });
    if let Ok(text) = std::str::from_utf8(input)
        && let Some(sender) = LIST.with(|list| list.sender(text))
    {
        assert!(sender.ends_with("@n.test"));
    }
});

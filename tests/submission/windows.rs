//! Mail that may be delivered at some times only.

use std::time::Duration;

use tests::client::Client;
use tests::engine::Engine;
use tests::eventually;
use tests::receiver::Receiver;

const WAIT: Duration = Duration::from_secs(20);

/// A window from and to so many seconds from now.
fn window(from: i64, to: i64) -> String {
    let now = jiff::Timestamp::now().as_second();
    let at = |s: i64| jiff::Timestamp::from_second(now + s).unwrap().strftime("%Y-%m-%d %H:%M:%S +0000").to_string();
    format!("{} / {}", at(from), at(to))
}

fn content(windows: &str) -> String {
    format!("X-Schedule: {windows}\r\nSubject: x\r\n\r\nx")
}

const SOURCE: &str = "<source 127/8>\n always-allow-relaying yes\n process-x-schedule yes\n</source>\n";

#[test]
fn mail_waits_for_its_window_over_a_restart_too() {
    let r = Receiver::start();
    let mut engine = Engine::start(2, &format!("{SOURCE}<domain *>\n {}\n bounce-after 1s\n</domain>", r.hosts()));
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("s@x.test", &["now@d.test"], &content(&window(-60, 60))).unwrap().0, 250);
    assert_eq!(c.send("s@x.test", &["soon@d.test", "soon@e.test"], &content(&window(6, 60))).unwrap().0, 250);
    let both = format!("{},\r\n\t{}", window(-60, -1), window(3600, 7200));
    assert_eq!(c.send("s@x.test", &["late@d.test"], &content(&both)).unwrap().0, 250);
    eventually("the first arrives", WAIT, || r.message_to("now@d.test").is_some());
    let why = engine.run(&["why", "d.test"]);
    assert!(why.contains("x-schedule"), "{why}");
    engine.kill_all();
    engine.start_again();
    assert_eq!(r.unique(), 1, "no window is open");
    // bounce-after is long over when the window opens.
    eventually("they arrive in their window", WAIT, || r.unique() == 3 && engine.queued() == 1);
    let m = r.message_to("soon@e.test").unwrap();
    assert!(!m.content.contains("chedule") && !m.content.contains("0000 /"), "{}", m.content);
    // An operator who wants it to go does not open a window.
    engine.run(&["schedule", "--retry-recipients", "*/*"]);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((r.unique(), engine.queued()), (3, 1));
}

#[test]
fn mail_ends_with_its_last_window() {
    let r = Receiver::start();
    r.script(|s| s.rcpt_reply = Some(("451 4.2.1 later", None)));
    let engine = Engine::start(
        1,
        &format!(
            "{SOURCE}<domain *>\n {}\n retry-recipients-after 1s\n</domain>\n<domain away.test>\n smtp-hosts [127.0.0.1]:9\n</domain>",
            r.hosts()
        ),
    );
    let mut c = Client::connect(engine.smtp).unwrap();
    assert_eq!(c.send("", &["tried@d.test", "u@away.test"], &content(&window(-1, 4))).unwrap().0, 250);
    // Where there is a second window the recipient is tried in that.
    let two = format!("{}, {}", window(-1, 3), window(3600, 3700));
    assert_eq!(c.send("", &["again@d.test"], &content(&two)).unwrap().0, 250);
    eventually("both have ended", Duration::from_secs(60), || engine.queued() == 1);
    let ended = |to: &str| tests::accounting::rows(engine.path()).contains_key(&("b".to_owned(), to.to_owned()));
    eventually("rows are written", WAIT, || ended("tried@d.test") && ended("u@away.test"));
    assert!(!ended("again@d.test"));
    let said = tests::accounting::lines(engine.path()).join("\n");
    assert!(
        said.contains("no attempt was made within the windows of its x-schedule") || said.contains("5.4.7"),
        "{said}"
    );
    let message = engine.run(&["why", "d.test"]);
    assert!(message.contains("recipients wait"), "{message}");
    // The windows of many recipients take the room of one.
    let many: Vec<String> = (0..2000).map(|n| format!("u{n}@h{}.test", n % 2)).collect();
    let to: Vec<&str> = many.iter().map(String::as_str).collect();
    let windows: Vec<String> = (0..100).map(|n| window(7000 + n * 10, 7005 + n * 10)).collect();
    let windows = windows.join(",\r\n\t");
    assert_eq!(c.send("", &to, &content(&windows)).unwrap().0, 250);
    eventually("all wait", WAIT, || engine.queued() == 2001);
}

#[test]
fn schedules_that_cannot_be_kept_are_refused() {
    let (_r, engine) = crate::start(SOURCE);
    let mut c = Client::connect(engine.smtp).unwrap();
    for (windows, why) in [
        (window(-10, -5), "all of its windows are over"),
        (window(10, 5), "ends before it begins"),
        ("tomorrow".to_owned(), "expected START / END"),
        (format!("{}\r\nX-Schedule: {}", window(1, 5), window(1, 5)), "more than one x-schedule"),
    ] {
        let (code, text) = c.send("s@x.test", &["u@d.test"], &content(&windows)).unwrap();
        assert!(code == 550 && text.contains(" 5.6.0 ") && text.contains(why), "{code} {text}");
    }
}

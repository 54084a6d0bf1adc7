//! Postfix as a client: it sends everything to us, with the SASL library of Cyrus.

use std::process::Command;
use std::time::Duration;

use tests::client::Client;
use tests::postfix::Postfix;
use tests::{eventually, has};

use super::{MESSAGE, SENDER, Server};

const MAIN: &str = "\
relayhost = [@HOST@]:@RELAY@
smtp_sasl_auth_enable = yes
smtp_sasl_password_maps = inline:{ { [@HOST@]:@RELAY@ = @USER@:secret } }
smtp_sasl_security_options = noanonymous
smtp_sasl_mechanism_filter = @MECHANISM@
smtp_tls_security_level = encrypt
";

#[test]
fn postfix_relays_with_the_mechanisms_of_cyrus() {
    let libraries = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let has_scram = libraries.map(|d| d.path().join("sasl2/libscram.so")).any(|f| f.exists());
    if !has_scram {
        println!("skipped: the mechanisms of libsasl2-modules are not installed");
    }
    if !has("postfix") || !has_scram {
        return;
    }
    let server = Server::start();
    let stuffed = MESSAGE.trim_end().replace("\r\n.", "\r\n..");
    for (mechanism, user) in [("SCRAM-SHA-256", "scram"), ("CRAM-MD5", "plain"), ("PLAIN", "argon"), ("LOGIN", "scram")]
    {
        let user = format!("{user}@users.test");
        let main = MAIN.replace("@HOST@", &server.host()).replace("@RELAY@", &server.port());
        let main = main.replace("@USER@", &user).replace("@MECHANISM@", mechanism);
        let Some(postfix) = Postfix::start_as_client(&main) else { return };
        let name = format!("postfix-{mechanism}").to_lowercase();
        let mut c = Client::connect(postfix.address()).unwrap();
        assert_eq!(c.send(SENDER, &[&format!("{name}@d.test")], &stuffed).unwrap().0, 250);
        eventually("Postfix delivers", Duration::from_secs(30), || postfix.log().contains("status=sent"));
        server.receives(&name, &user, &mut Command::new("true"));
    }
}

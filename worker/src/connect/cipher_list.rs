//! OpenSSL's cipher lists (`smtp-tls-ciphers`) for the suites that rustls has: all of them have
//! forward secrecy and authenticated encryption, so that old names match nothing.

use rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;
use rustls::{CipherSuite, SupportedCipherSuite};

/// A TLS 1.2 suite by OpenSSL's name, and the groups that it belongs to.
const TLS12: [(CipherSuite, &str, &str); 6] = {
    use CipherSuite as S;
    [
        (
            S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            "ECDSA aECDSA AES AES256 AESGCM SHA384",
        ),
        (S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, "ECDHE-RSA-AES256-GCM-SHA384", "RSA aRSA AES AES256 AESGCM SHA384"),
        (S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDSA aECDSA CHACHA20"),
        (S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, "ECDHE-RSA-CHACHA20-POLY1305", "RSA aRSA CHACHA20"),
        (
            S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            "ECDSA aECDSA AES AES128 AESGCM SHA256",
        ),
        (S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, "ECDHE-RSA-AES128-GCM-SHA256", "RSA aRSA AES AES128 AESGCM SHA256"),
    ]
};
/// Groups that hold all of them.
const OF_ALL: &str = "ALL DEFAULT COMPLEMENTOFDEFAULT HIGH ECDHE EECDH kECDHE kEECDH FIPS TLSv1.2 AEAD";

/// The suites of a TLS 1.2 list (OpenSSL's `ciphers(1)`) and a list of TLS 1.3 suites, in their
/// order; empty lists stand for all.
///
/// # Errors
/// A sentence when nothing is left, or a TLS 1.3 suite does not exist.
pub fn select(list: &str, suites: &str) -> Result<Vec<SupportedCipherSuite>, String> {
    let known = |s: CipherSuite| ALL_CIPHER_SUITES.iter().find(|x| x.suite() == s).copied();
    let mut all = of_tls13(suites)?;
    if all.is_empty() {
        all = ALL_CIPHER_SUITES.iter().filter(|s| s.tls13().is_some()).copied().collect();
    }
    let mut old = of_tls12(list)?;
    if list.trim().is_empty() {
        old = TLS12.iter().map(|(s, ..)| *s).collect();
    }
    all.extend(old.into_iter().filter_map(known));
    Ok(all)
}

fn of_tls13(list: &str) -> Result<Vec<SupportedCipherSuite>, String> {
    let mut all = Vec::new();
    for name in list.split([':', ',', ' ']).filter(|n| !n.is_empty()) {
        // Two of the five standard suites are for small devices; nobody offers them alone.
        if name.to_ascii_uppercase().contains("_CCM") {
            continue;
        }
        let found = ALL_CIPHER_SUITES.iter().filter(|s| s.tls13().is_some());
        let found = found.copied().find(|s| shown(s.suite()).eq_ignore_ascii_case(name));
        all.push(found.ok_or_else(|| format!("{name} is not a TLS 1.3 cipher suite that can be used"))?);
    }
    Ok(all)
}

fn of_tls12(list: &str) -> Result<Vec<CipherSuite>, String> {
    let (mut all, mut barred): (Vec<CipherSuite>, Vec<CipherSuite>) = (Vec::new(), Vec::new());
    for part in list.split([':', ',', ' ']).filter(|p| !p.is_empty() && !p.starts_with('@')) {
        let (sign, names) = match part.as_bytes()[0] {
            c @ (b'!' | b'-' | b'+') => (c, &part[1..]),
            _ => (b' ', part),
        };
        let meant = TLS12.iter().filter(|(_, name, groups)| names.split('+').all(|n| is_in(n, name, groups)));
        let meant: Vec<CipherSuite> = meant.map(|(s, ..)| *s).collect();
        match sign {
            b'+' => {
                let moved: Vec<CipherSuite> = all.iter().filter(|s| meant.contains(s)).copied().collect();
                all.retain(|s| !meant.contains(s));
                all.extend(moved);
            }
            b'-' | b'!' => {
                all.retain(|s| !meant.contains(s));
                if sign == b'!' {
                    barred.extend(meant);
                }
            }
            _ => {
                for s in meant {
                    if !all.contains(&s) && !barred.contains(&s) {
                        all.push(s);
                    }
                }
            }
        }
    }
    if all.is_empty() && !list.trim().is_empty() {
        return Err(format!(
            "{list:?} leaves no cipher of TLS 1.2: there are {}",
            TLS12.iter().map(|(_, n, _)| *n).collect::<Vec<_>>().join(", ")
        ));
    }
    Ok(all)
}

fn is_in(word: &str, name: &str, groups: &str) -> bool {
    let among = |list: &str| list.split(' ').any(|g| g.eq_ignore_ascii_case(word));
    name.eq_ignore_ascii_case(word) || among(groups) || among(OF_ALL)
}

/// A suite as OpenSSL and accounting name it.
pub fn shown(suite: CipherSuite) -> String {
    match TLS12.iter().find(|(s, ..)| *s == suite) {
        Some((_, name, _)) => (*name).to_owned(),
        None => format!("{suite:?}").replace("TLS13_", "TLS_"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(list: &str) -> Vec<String> {
        let all = select(list, "TLS_AES_256_GCM_SHA384").unwrap();
        all.iter().skip(1).map(|s| shown(s.suite())).collect()
    }

    #[test]
    fn lists_of_openssl() {
        assert_eq!(names("HIGH:!ADH:@STRENGTH").len(), 6);
        assert_eq!(names("").len(), 6);
        assert_eq!(names("ECDHE-RSA-AES128-GCM-SHA256"), ["ECDHE-RSA-AES128-GCM-SHA256"]);
        assert_eq!(names("ECDHE+AESGCM:!aECDSA"), ["ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-AES128-GCM-SHA256"]);
        assert_eq!(names("aRSA:+AES256:-CHACHA20"), ["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384"]);
        assert!(select("RC4-SHA:3DES", "").unwrap_err().contains("leaves no cipher"));
        assert!(select("", "TLS_NO_SUCH").is_err());
        let all = select("HIGH", "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_CCM_SHA256").unwrap();
        assert_eq!(shown(all[0].suite()), "TLS_CHACHA20_POLY1305_SHA256");
        assert_eq!(all.len(), 7);
    }
}

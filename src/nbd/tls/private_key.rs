//! The private key of TLS, from the text of its file to what signs with it.
//!
//! Invariant: the text and what is decoded of it are overwritten with zeroes once they are done with, which
//! rustls's own reader of PEM leaves undone. What signs is the key that stays.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::SigningKey;
use x509_parser::asn1_rs::{FromDer, Oid};
use zeroize::Zeroizing;

use super::der::{contents, element};

/// What fits, and how it is made.
const FITTING: &str = "make an ECDSA key with openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out \
    server-key.pem, and a certificate for it; RSA of 2048 to 8192 bits, ECDSA on P-256, P-384 and P-521 and \
    Ed25519 fit";

/// Said of a key that needs a password.
const ENCRYPTED: &str = "the key is encrypted, and there is nobody to ask for its password: decrypt it with openssl \
    pkey -in server-key.pem -out KEY, for the server alone to read";

const OTHER_CURVE: &str = "on another curve than P-256, P-384 and P-521";

/// The types that other servers take and no provider for rustls does, by what names them in PKCS #8.
const UNSUPPORTED: [(&str, &str); 3] = [
    ("1.2.840.113549.1.1.10", "for RSA-PSS alone"),
    ("1.3.101.113", "an Ed448 key"),
    ("1.2.840.10045.2.1", OTHER_CURVE),
];

/// A private key in DER: PKCS #1, SEC 1 or PKCS #8.
pub(super) struct PrivateKey(Zeroizing<Vec<u8>>);

impl PrivateKey {
    /// The first private key in the text of a file, which may stand behind parameters or certificates.
    ///
    /// # Errors
    /// In words, if there is none or it is not valid.
    pub(super) fn from_pem(text: Vec<u8>) -> Result<Self, String> {
        let text = Zeroizing::new(text);
        let text = str::from_utf8(&text).map_err(|_| "it is not valid PEM: it is no text")?;
        // In the label of PKCS #8, and in a line of its own in the older format.
        if text.contains("ENCRYPTED") {
            return Err(ENCRYPTED.to_owned());
        }
        let invalid = |error| format!("it is not valid PEM: {error}");
        for section in sections(text) {
            let mut decoder =
                pem_rfc7468::Decoder::new_detect_wrap(section.as_bytes()).map_err(invalid)?;
            if decoder.type_label().ends_with("PRIVATE KEY") {
                let mut key = Zeroizing::new(vec![0; decoder.remaining_len()]);
                decoder.decode(&mut key).map_err(invalid)?;
                return Ok(Self(key));
            }
        }
        Err("there is no private key in it".to_owned())
    }

    /// What signs with the key.
    ///
    /// # Errors
    /// In words, if it is of no kind that can be used.
    pub(super) fn signer(&self) -> Result<Arc<dyn SigningKey>, String> {
        let key = PrivateKeyDer::try_from(self.0.as_slice())
            .map_err(|_| format!("the key is damaged: {FITTING}"))?;
        any_supported_type(&key).map_err(|_| {
            let kind =
                kind(&key).unwrap_or("damaged, or of a kind or length that is not supported");
            format!("the key is {kind}: {FITTING}")
        })
    }
}

/// What the key is, if it says that it is of a type that is not supported.
fn kind(key: &PrivateKeyDer<'_>) -> Option<&'static str> {
    let PrivateKeyDer::Pkcs8(key) = key else {
        // SEC 1 is for EC keys alone.
        return matches!(key, PrivateKeyDer::Sec1(_)).then_some(OTHER_CURVE);
    };
    // A version, then the algorithm, which begins with what names it.
    let (_, _, rest) = element(contents(key.secret_pkcs8_der())?)?;
    let (_, algorithm, _) = element(rest)?;
    let (_, oid) = Oid::from_der(algorithm).ok()?;
    let oid = oid.to_id_string();
    let found = UNSUPPORTED.iter().find(|(id, _)| *id == oid);
    found.map(|(_, kind)| *kind)
}

/// The items of a file of PEM, each from its first line to its last.
fn sections(text: &str) -> impl Iterator<Item = &str> {
    let starts = text.match_indices("-----BEGIN ");
    starts.filter_map(|(at, _)| {
        const END: &str = "-----END ";
        const DASHES: &str = "-----";
        let section = &text[at..];
        let label = section.find(END)? + END.len();
        let end = label + section[label..].find(DASHES)? + DASHES.len();
        Some(&section[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_found_behind_other_items_and_lines_may_end_in_either_way() {
        let signing = rcgen::KeyPair::generate().expect("a key");
        let (der, pem) = (signing.serialize_der(), signing.serialize_pem());
        let other =
            "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        let unix = pem.replace("\r\n", "\n");
        for text in [
            unix.clone(),
            unix.replace('\n', "\r\n"),
            format!("Bag Attributes: none\n{other}{unix}"),
        ] {
            let key =
                PrivateKey::from_pem(text.clone().into_bytes()).map_err(|e| format!("{e}: {text}"));
            assert_eq!(key.expect("a key").0.as_slice(), der);
        }
        for (wrong, says) in [
            ("", "no private key"),
            (other, "no private key"),
            (&unix[..90], "no private key"),
            (&unix.replace("\nM", "\n?"), "PEM"),
        ] {
            let error = PrivateKey::from_pem(wrong.as_bytes().to_vec())
                .err()
                .expect("refused");
            assert!(error.contains(says), "{wrong:?}: {error}");
        }
    }
}

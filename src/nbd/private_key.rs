//! The private key of TLS, from the text of its file to what signs with it.
//!
//! Invariant: the text and what is decoded of it are overwritten with zeroes once they are done with, which
//! rustls's own reader of PEM leaves undone. What signs is the key that stays.

use rustls::InconsistentKeys;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

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

    /// The key beside its certificates.
    ///
    /// # Errors
    /// If it is of no kind that can be used, or not the key of the first of them.
    pub(super) fn certify(
        self,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<CertifiedKey, rustls::Error> {
        let key = PrivateKeyDer::try_from(self.0.as_slice())
            .map_err(|reason| rustls::Error::General(reason.to_owned()))?;
        let certified = CertifiedKey::new(chain, any_supported_type(&key)?);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {
                Ok(certified)
            }
            Err(error) => Err(error),
        }
    }
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

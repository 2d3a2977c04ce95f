//! Lists of revoked certificates, beside the certificates made for a test.

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber, date_time_ymd,
};

use super::{Authority, CLIENT, Certificates, write};

/// Has the server know a list by which its authority, or another, revokes the certificate of serial number
/// [`CLIENT`]: "ours", "theirs", or "forged" for one that only bears our authority's name.
pub fn revoke_client(certificates: &Certificates, by: &str) {
    let forger;
    let authority = match by {
        "ours" => &certificates.ours,
        "theirs" => &certificates.theirs,
        _ => {
            forger = Authority::new("ours");
            &forger
        }
    };
    write(&certificates.server(), "ca-crl.pem", &list(authority));
}

fn list(authority: &Authority) -> String {
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(CLIENT),
        revocation_time: date_time_ymd(2024, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update: date_time_ymd(2100, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = params.signed_by(&authority.issuer).expect("a list");
    list.pem().expect("PEM")
}

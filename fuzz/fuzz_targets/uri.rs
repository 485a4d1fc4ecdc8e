//! Any text as a SIP URI: it is written as it is read, and is equivalent to itself
#![no_main]

use libfuzzer_sys::fuzz_target;
use sip_registration::SipUri;

fuzz_target!(|input: (&str, &str)| {
    let (Ok(one), other) = (SipUri::parse(input.0), SipUri::parse(input.1)) else {
        return;
    };
    let _ = (
        one.user(),
        one.password(),
        one.host(),
        one.host_text(),
        one.ip(),
    );
    let _ = (one.port(), one.transport(), one.headers(), one.scheme());
    for (name, value) in one.params() {
        assert!(one.has_param(name), "{name} is listed and not found");
        let _ = value;
    }
    let written = one.to_string();
    assert!(
        !written.contains(['\r', '\n', '\0']),
        "a line break in {written:?}"
    );
    let again = SipUri::parse(&written).expect("what is written is read");
    assert_eq!(again.to_string(), written);
    assert!(one.is_equivalent(&again) && again.is_equivalent(&one));
    if let Ok(other) = other {
        assert_eq!(one.is_equivalent(&other), other.is_equivalent(&one));
    }
});

//! Any bytes as a request and as a response: what is read, what is refused, and that both agree with themselves
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sip_registration::{Headers, Request, Response};

fuzz_target!(|bytes: &[u8]| {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(request) = Request::parse(bytes.clone()) {
        let _ = (request.method(), request.uri(), request.body());
        let valid = request.validate();
        read(&request);
        let again = Request::parse(request.bytes().clone()).expect("what was read is read again");
        assert_eq!(again.validate(), valid);
    }
    if let Ok(response) = Response::parse(bytes) {
        assert!((100..=699).contains(&response.code()));
        let _ = (response.status_line(), response.reason(), response.body());
        let valid = response.validate();
        read(&response);
        let again = Response::parse(response.bytes().clone()).expect("what was read is read again");
        assert_eq!(again.validate(), valid);
    }
});

fn read(message: &Headers) {
    let _ = (message.call_id(), message.cseq(), message.content_length());
    let _ = (message.via(), message.via_count(), message.retry_after());
    for contact in message.contacts() {
        let _ = format!("{contact:?}");
    }
    for name in ["From", "To", "Contact", "P-Associated-URI", "Service-Route"] {
        let _ = (message.tag_of(name), message.name_addr(name));
        let _ = message.name_addrs(name).count();
    }
    for (name, value) in message.header_fields() {
        assert!(!value.contains('\n'), "a line break in {name}");
        let _ = message.values(&name).count();
        let _ = (message.delta_seconds(&name), message.option_tags(&name));
    }
}

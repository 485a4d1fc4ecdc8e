//! The grammar of RFC 3261 §25.1, as far as configuration needs it.

/// The parts between separators that are neither in quotes nor in `<>`.
pub(crate) fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let current = rest?;
        let (mut quoted, mut escaped, mut bracketed) = (false, false, false);
        let end = current.char_indices().find_map(|(at, c)| {
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                _ if quoted => {}
                '<' => bracketed = true,
                '>' => bracketed = false,
                c if c == separator && !bracketed => return Some(at),
                _ => {}
            }
            None
        });
        rest = end.and_then(|at| current.get(at + separator.len_utf8()..));
        Some(end.and_then(|at| current.get(..at)).unwrap_or(current))
    })
}

pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&b))
}

/// Text without control characters; UTF-8 is legal in it.
pub(super) fn is_text(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

/// A user part without password: escapes, unreserved and user-unreserved characters.
pub(super) fn is_user(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.!~*'()&=+$,;?/".contains(&b);
    !text.is_empty()
        && text.len() <= 255
        && text.bytes().all(|b| plain(b) || b == b'%')
        && unescape(text).is_some()
}

/// A `generic-param`: `name`, `name=token`, `name=host` or `name="text"`.
pub(super) fn is_param(text: &str) -> bool {
    let Some((name, value)) = text.split_once('=') else {
        return is_token(text.trim_matches(' '));
    };
    let value = value.trim_matches(' ');
    let inner = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let legal = match inner {
        Some(inner) => is_quotable(inner),
        None => is_token(value) || is_address(value),
    };
    is_token(name.trim_matches(' ')) && legal
}

/// A list of parameters, without a `;` before it.
pub(super) fn is_params(text: &str) -> bool {
    split(text, ';').all(is_param)
}

/// The text with its `%HH` decoded; `None` where one is malformed or the result is no UTF-8.
pub(super) fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || {
                    char::from(rest.next()?)
                        .to_digit(16)
                        .and_then(|digit| u8::try_from(digit).ok())
                };
                let high = digit()?;
                high * 16 + digit()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Whether a text between quotes ends where they end.
fn is_quotable(inner: &str) -> bool {
    let mut escaped = false;
    for c in inner.chars() {
        match c {
            c if c.is_control() => return false,
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return false,
            _ => {}
        }
    }
    !escaped
}

fn is_address(value: &str) -> bool {
    let inner = value
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
}

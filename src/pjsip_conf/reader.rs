//! How the lines of a section become typed values, and what is said about those that do not.

use super::diagnostic::{Diagnostic, Rule, Severity};
use super::grammar::{Section, Variable};
use std::sync::Arc;

/// Reads one section; everything that is wrong with it is reported, not just the first thing
#[derive(Debug)]
pub(super) struct Reader<'a> {
    section: &'a Section,
    type_: &'static str,
    diagnostics: &'a mut Vec<Diagnostic>,
    refused: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        section: &'a Section,
        type_: &'static str,
        diagnostics: &'a mut Vec<Diagnostic>,
    ) -> Self {
        // What is no UTF-8 was reported where it was read, and is not what was meant.
        let refused = section.variables.iter().any(|variable| variable.broken);
        Self {
            section,
            type_,
            diagnostics,
            refused,
        }
    }

    /// Whether something was wrong enough to refuse the object.
    pub(super) fn is_refused(&self) -> bool {
        self.refused
    }

    pub(super) fn name(&self) -> &'a Arc<str> {
        &self.section.name
    }

    /// The lines of the section, without `type` and extended fields, names in lower case.
    pub(super) fn variables(&self) -> impl Iterator<Item = (String, &'a Variable)> + use<'a> {
        let all = self
            .section
            .variables
            .iter()
            .map(|variable| (variable.name.to_ascii_lowercase(), variable));
        all.filter(|(name, _)| name != "type" && !name.starts_with('@'))
    }

    /// The last line of an option.
    pub(super) fn last(&self, option: &str) -> Option<&'a Variable> {
        self.section
            .variables
            .iter()
            .rfind(|variable| variable.name.eq_ignore_ascii_case(option))
    }

    /// About a line, or the section as a whole.
    pub(super) fn refuse(&mut self, at: Option<&Variable>, rule: Rule) {
        self.refused = true;
        self.say(Severity::Error, at, rule);
    }

    /// About a line, or the section as a whole.
    pub(super) fn warn(&mut self, at: Option<&Variable>, rule: Rule) {
        self.say(Severity::Warning, at, rule);
    }

    /// About an option, whether the section has it or not.
    pub(super) fn refuse_option(&mut self, option: &'static str, rule: Rule) {
        self.refused = true;
        self.say_option(Severity::Error, option, rule);
    }

    /// About an option, whether the section has it or not.
    pub(super) fn warn_option(&mut self, option: &'static str, rule: Rule) {
        self.say_option(Severity::Warning, option, rule);
    }

    /// An option that the type does not have.
    pub(super) fn unknown(&mut self, at: &Variable) {
        self.refuse(Some(at), Rule::UnknownOption(self.type_));
    }

    /// An unsigned number; none where it is none, and the object is refused.
    pub(super) fn uint(&mut self, at: &Variable) -> Option<u32> {
        let number = uint(&at.value);
        if number.is_none() {
            self.refuse(Some(at), Rule::NotNumber);
        }
        number
    }

    pub(super) fn boolean(&mut self, at: &Variable) -> bool {
        boolean(&at.value).unwrap_or_else(|| {
            self.warn(Some(at), Rule::NotBoolean);
            false
        })
    }

    fn say_option(&mut self, severity: Severity, option: &'static str, rule: Rule) {
        let at = self.last(option);
        self.say(severity, at, rule);
        if let Some(said) = self.diagnostics.last_mut().filter(|_| at.is_none()) {
            said.option = Some(option.into());
        }
    }

    fn say(&mut self, severity: Severity, at: Option<&Variable>, rule: Rule) {
        let place = at.map_or(&self.section.place, |at| &at.place);
        // The value of an option that nobody knows may be a secret with its name misspelt.
        let unknown = matches!(rule, Rule::UnknownOption(_) | Rule::IgnoredOption(_));
        self.diagnostics.push(Diagnostic {
            severity,
            file: Arc::clone(&place.file),
            line: place.line,
            section: Some(Arc::clone(&self.section.name)),
            option: at.map(|at| Arc::clone(&at.name)),
            value: at.filter(|_| !unknown).and_then(shown),
            rule,
        });
    }
}

/// The value as it may be shown: none of a secret, without a password in a URI, shortened.
fn shown(variable: &Variable) -> Option<Arc<str>> {
    const SECRET: [&str; 7] = [
        "password",
        "md5_cred",
        "password_digest",
        "refresh_token",
        "oauth_clientid",
        "oauth_secret",
        "auth_pass",
    ];
    if SECRET
        .iter()
        .any(|secret| secret.eq_ignore_ascii_case(&variable.name))
    {
        return None;
    }
    // The headers of a URI may be credentials.
    let value = variable
        .value
        .split_once('?')
        .map_or(&*variable.value, |(before, _)| before);
    let dots = if value.len() < variable.value.len() {
        "?…"
    } else {
        ""
    };
    Some(format!("{}{dots}", crate::uri::excerpt(value)).into())
}

/// As C's `strtoul` with base 0: `10`, `0x10`, `010`, which is 8.
pub(super) fn uint(text: &str) -> Option<u32> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (text.get(2..)?, 16),
        [b'0', _, ..] => (text.get(1..)?, 8),
        _ => (text, 10),
    };
    // `from_str_radix` takes a sign of its own.
    if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

/// What Asterisk takes for yes and no; none for what it silently takes for no.
pub(super) fn boolean(text: &str) -> Option<bool> {
    let is = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
    if is(&["yes", "true", "y", "t", "1", "on"]) {
        Some(true)
    } else if is(&["no", "false", "n", "f", "0", "off"]) {
        Some(false)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_by_strtoul_with_base_0() {
        for (text, value) in [
            ("0", Some(0)),
            ("60", Some(60)),
            ("+60", Some(60)),
            ("0x10", Some(16)),
            ("0XfF", Some(255)),
            ("010", Some(8)),
            ("4294967295", Some(u32::MAX)),
            ("4294967296", None),
            ("", None),
            ("-1", None),
            ("+-1", None),
            ("0x", None),
            ("0x-1", None),
            ("0+1", None),
            ("08", None),
            ("6 0", None),
            ("60s", None),
        ] {
            assert_eq!(uint(text), value, "{text:?}");
        }
    }

    #[test]
    fn booleans_are_a_few_words_in_any_case() {
        for text in ["yes", "TRUE", "y", "T", "1", "On"] {
            assert_eq!(boolean(text), Some(true), "{text}");
        }
        for text in ["no", "False", "n", "F", "0", "oFF"] {
            assert_eq!(boolean(text), Some(false), "{text}");
        }
        for text in ["", "ture", "yes ", "2", "enabled"] {
            assert_eq!(boolean(text), None, "{text}");
        }
    }
}

//! The grammar of Asterisk's configuration files: sections, templates, inheritance, comments, includes.

use super::diagnostic::{Diagnostic, Rule, Severity};
use super::files::{Files, expand};
use std::collections::HashMap;
use std::sync::Arc;

/// A section, with all that it inherited before its own lines
#[derive(Debug)]
pub(super) struct Section {
    pub(super) name: Arc<str>,
    pub(super) template: bool,
    pub(super) place: Place,
    pub(super) variables: Vec<Variable>,
}

/// Where something was written
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) file: Arc<str>,
    pub(super) line: u32,
}

/// A line `name = value`
#[derive(Debug, Clone)]
pub(super) struct Variable {
    pub(super) name: Arc<str>,
    pub(super) value: Arc<str>,
    pub(super) place: Place,
    /// The line was no UTF-8: its value is not what was written.
    pub(super) broken: bool,
}

/// What a file says, before any of it is understood
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) sections: Vec<Section>,
    /// Whether the file is a configuration at all: Asterisk takes none of an invalid one.
    pub(super) valid: bool,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// Reads a file and all that it includes.
pub(super) fn parse(files: &dyn Files, path: &str) -> Parsed {
    let mut parser = Parser {
        files,
        sections: Vec::new(),
        by_name: HashMap::new(),
        diagnostics: Vec::new(),
        including: Vec::new(),
        standing: None,
        read: 0,
        variables: 0,
    };
    let valid = match files.read(path) {
        Ok(content) => parser.file(path, &content, None).is_ok(),
        Err(error) => {
            let place = Place {
                file: path.into(),
                line: 0,
            };
            parser.say(
                Severity::Error,
                &place,
                Rule::Unreadable(error.to_string().into()),
            );
            false
        }
    };
    Parsed {
        sections: parser.sections,
        valid,
        diagnostics: parser.diagnostics,
    }
}

/// As deep as Asterisk follows includes.
const DEEPEST_INCLUDE: usize = 10;
/// As many files as make a configuration; each file can be included several times.
const MOST_FILES: usize = 10_000;
/// As many lines, inherited ones counted for each section: templates of templates can double it with each line.
const MOST_VARIABLES: usize = 5_000_000;
/// As many lines in one section; each `+=` looks through them.
const MOST_IN_SECTION: usize = 10_000;
/// The longest value that `+=` puts together.
const LONGEST_VALUE: usize = 65_536;
/// The longest line that Asterisk reads.
const LONGEST_LINE: usize = 8191;
/// As deep as Asterisk reads block comments.
const DEEPEST_COMMENT: usize = 128;

/// The file is no configuration; a diagnostic says why.
struct Invalid;

struct Parser<'a> {
    files: &'a dyn Files,
    sections: Vec<Section>,
    /// By name in lower case: Asterisk compares names of sections without regard to case.
    by_name: HashMap<String, Vec<usize>>,
    diagnostics: Vec<Diagnostic>,
    /// The files that are being read, the innermost last.
    including: Vec<String>,
    /// The section in which the line stands that is being read; none before the first.
    standing: Option<usize>,
    read: usize,
    variables: usize,
}

impl Parser<'_> {
    /// Reads the lines of one file; those before its first section belong to the section it was included in.
    fn file(
        &mut self,
        path: &str,
        content: &[u8],
        mut current: Option<usize>,
    ) -> Result<(), Invalid> {
        let file: Arc<str> = path.into();
        self.including.push(path.to_owned());
        let mut comments: Vec<u32> = Vec::new();
        let content = content.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(content);
        for (line, bytes) in (1..).zip(content.split(|byte| *byte == b'\n')) {
            let place = Place {
                file: Arc::clone(&file),
                line,
            };
            self.standing = current;
            if bytes.len() > LONGEST_LINE {
                self.say(Severity::Warning, &place, Rule::LineTooLong);
                continue;
            }
            let (bytes, cut) = self.uncomment(bytes, &mut comments, &place)?;
            let trimmed = bytes.trim_ascii();
            let (text, broken) = match str::from_utf8(trimmed) {
                Ok(text) => (text.to_owned(), false),
                Err(_) => {
                    let text = String::from_utf8_lossy(trimmed).into_owned();
                    match text.strip_prefix('[') {
                        Some(header) => {
                            let name = header.split(']').next().unwrap_or_default().into();
                            self.about(Severity::Error, &place, &name, Rule::NotUtf8);
                        }
                        None => {
                            let option = match text.starts_with('#') {
                                true => Some(word(&text)),
                                false => option(&text),
                            };
                            self.say_option(Severity::Error, &place, option, Rule::NotUtf8);
                        }
                    }
                    (text, true)
                }
            };
            let text = strip(&text);
            match text.chars().next() {
                None => {}
                Some('[') => current = Some(self.header(text, &place)?),
                Some('#') => self.directive(text, &place, current)?,
                Some(_) => {
                    self.variable(text, broken, &place, current)?;
                    // It may be a secret: no value is shown.
                    if let Some(option) = option(text).filter(|_| cut) {
                        let rule = Rule::CutByComment;
                        self.say_option(Severity::Warning, &place, Some(option), rule);
                    }
                }
            }
        }
        self.standing = current;
        if let Some(line) = comments.first() {
            let place = Place { file, line: *line };
            self.say(Severity::Warning, &place, Rule::UnterminatedComment);
        }
        self.including.pop();
        Ok(())
    }

    /// The line without its comments; `comments` are the lines where the open block comments started. True where the
    /// comment that ends it stands in the middle of a word, which may have been meant to go on.
    fn uncomment(
        &mut self,
        line: &[u8],
        comments: &mut Vec<u32>,
        place: &Place,
    ) -> Result<(Vec<u8>, bool), Invalid> {
        let mut cut = false;
        let mut kept = Vec::with_capacity(line.len());
        // What stands before it was looked at: neither a \ nor the - of a comment's end counts twice.
        let mut start = 0;
        let mut at = 0;
        let byte = |at: usize| line.get(at).copied().unwrap_or_default();
        while let Some(current) = line.get(at) {
            if *current != b';' {
                if comments.is_empty() {
                    kept.push(*current);
                }
                at += 1;
            } else if at > start && byte(at - 1) == b'\\' {
                if comments.is_empty() {
                    kept.pop();
                    kept.push(b';');
                }
                at += 1;
                start = at;
            } else if byte(at + 1) == b'-' && byte(at + 2) == b'-' && byte(at + 3) != b'-' {
                if comments.len() >= DEEPEST_COMMENT {
                    return self.invalid(place, Rule::CommentDepth);
                }
                comments.push(place.line);
                at += 3;
                start = at;
            } else if at >= start + 2 && byte(at - 1) == b'-' && byte(at - 2) == b'-' {
                if comments.pop().is_none() {
                    self.say(Severity::Warning, place, Rule::StrayCommentEnd);
                    break;
                }
                at += 1;
                start = at;
            } else if comments.is_empty() {
                let in_word = |byte: u8| !byte.is_ascii_whitespace() && byte != b'=';
                cut = kept.last().is_some_and(|last| in_word(*last))
                    && byte(at + 1).is_ascii_alphanumeric();
                break;
            } else {
                at += 1;
                start = at;
            }
        }
        Ok((kept, cut))
    }

    /// `[name]`, `[name](!)`, `[name](a,b)`, `[name](+)`, `[name](+type=registration)`: the section that follows.
    fn header(&mut self, text: &str, place: &Place) -> Result<usize, Invalid> {
        let Some((name, rest)) = text.get(1..).and_then(|text| text.split_once(']')) else {
            let name = text.trim_start_matches('[').into();
            return self.invalid_about(place, &name, Rule::NoClosingBracket);
        };
        let name: Arc<str> = name.into();
        let mut section = Section {
            name: Arc::clone(&name),
            template: false,
            place: place.clone(),
            variables: Vec::new(),
        };
        let Some(rest) = rest.strip_prefix('(') else {
            if strip(rest).starts_with('(') {
                self.about(Severity::Warning, place, &name, Rule::SpaceBeforeOptions);
            } else if !rest.is_empty() {
                self.about(Severity::Warning, place, &name, Rule::TextAfterHeader);
            }
            return Ok(self.append(section));
        };
        let Some((words, rest)) = rest.split_once(')') else {
            return self.invalid_about(place, &name, Rule::NoClosingParenthesis);
        };
        if !rest.is_empty() {
            self.about(Severity::Warning, place, &name, Rule::TextAfterHeader);
        }
        // Once a `+` was read, the section that is added to.
        let mut existing = None;
        for word in words.split(',') {
            if word == "!" {
                match existing.and_then(|index: usize| self.sections.get_mut(index)) {
                    Some(existing) => existing.template = true,
                    None => section.template = true,
                }
            } else if let Some(filter) = word.strip_prefix('+') {
                let Some(index) = self.find(&name, filter, place)? else {
                    return self.invalid_about(place, &name, Rule::NothingToAddTo);
                };
                if let Some(found) = self.sections.get_mut(index) {
                    found.template |= section.template;
                    found.variables.append(&mut section.variables);
                }
                existing = Some(index);
            } else if word.is_empty() {
                self.about(Severity::Warning, place, &name, Rule::EmptyParent);
            } else {
                let parent = self
                    .by_name
                    .get(&word.to_ascii_lowercase())
                    .and_then(|found| found.first());
                let Some(parent) = parent.and_then(|index| self.sections.get(*index)) else {
                    return self.invalid_about(place, &name, Rule::UnknownParent(word.into()));
                };
                self.variables += parent.variables.len();
                if self.variables > MOST_VARIABLES {
                    return self.too_many_variables(place);
                }
                let inherited = parent.variables.clone();
                match existing.and_then(|index: usize| self.sections.get_mut(index)) {
                    Some(existing) => existing.variables.extend(inherited),
                    None => section.variables.extend(inherited),
                }
            }
        }
        Ok(existing.unwrap_or_else(|| self.append(section)))
    }

    fn append(&mut self, section: Section) -> usize {
        let index = self.sections.len();
        let key = section.name.to_ascii_lowercase();
        self.by_name.entry(key).or_default().push(index);
        self.sections.push(section);
        index
    }

    /// The first section of this name that fits the filter; templates only where the filter says so.
    fn find(&mut self, name: &str, filter: &str, place: &Place) -> Result<Option<usize>, Invalid> {
        let mut conditions = Vec::new();
        let (mut templates, mut only_templates) = (false, false);
        for condition in filter.split('&').filter(|_| !filter.is_empty()) {
            let fields = condition
                .split_once('=')
                .map(|(name, value)| (strip(name), strip(value)));
            match fields {
                Some(("TEMPLATES", value)) => {
                    only_templates = value.eq_ignore_ascii_case("restrict");
                    templates = only_templates || value.eq_ignore_ascii_case("include");
                }
                Some((name, value)) if is_plain(name) && is_plain(value) => {
                    conditions.push((name, value))
                }
                _ => return self.invalid_about(place, &name.into(), Rule::Filter(filter.into())),
            }
        }
        let same_name = self
            .by_name
            .get(&name.to_ascii_lowercase())
            .map(Vec::as_slice)
            .unwrap_or_default();
        Ok(same_name.iter().copied().find(|index| {
            self.sections.get(*index).is_some_and(|section| {
                (templates || !section.template)
                    && (section.template || !only_templates)
                    && conditions.iter().all(|(name, value)| {
                        let mut variables = section.variables.iter();
                        variables.any(|variable| {
                            contains(&variable.name, name) && contains(&variable.value, value)
                        })
                    })
            })
        }))
    }

    fn directive(
        &mut self,
        text: &str,
        place: &Place,
        current: Option<usize>,
    ) -> Result<(), Invalid> {
        let end = text.find(|c: char| c <= ' ').unwrap_or(text.len());
        let (directive, argument) = text.split_at(end);
        let argument = strip(argument);
        let try_include = directive.eq_ignore_ascii_case("#tryinclude");
        if directive.eq_ignore_ascii_case("#exec") {
            // The arguments of a program may be secrets.
            self.say_option(Severity::Error, place, Some(directive), Rule::Exec);
            return Ok(());
        }
        if !try_include && !directive.eq_ignore_ascii_case("#include") {
            // It may be a secret that a # was to comment out: its value is not shown.
            let option = Some(word(directive));
            self.say_option(Severity::Warning, place, option, Rule::UnknownDirective);
            return Ok(());
        }
        let say = |parser: &mut Self, severity, rule| {
            // What was included stands elsewhere.
            parser.standing = current;
            parser.say_option(severity, place, Some(directive), rule);
            if let Some(said) = parser.diagnostics.last_mut() {
                let argument = Some(argument).filter(|argument| !argument.is_empty());
                said.value = argument.map(|argument| crate::uri::excerpt(argument).into());
            }
        };
        let unquoted = [('"', '"'), ('<', '>')]
            .iter()
            .find_map(|(open, close)| argument.strip_prefix(*open)?.strip_suffix(*close));
        let path = unquoted.unwrap_or(argument);
        if path.is_empty() {
            say(self, Severity::Warning, Rule::DirectiveArgument);
            return Ok(());
        }
        if self.including.len() > DEEPEST_INCLUDE {
            say(self, Severity::Error, Rule::IncludeDepth(DEEPEST_INCLUDE));
            return Err(Invalid);
        }
        let mut found = false;
        for path in expand(self.files, path, MOST_FILES) {
            if self.including.contains(&path) {
                found = true;
                say(self, Severity::Error, Rule::IncludeLoop(path.into()));
                continue;
            }
            let Ok(content) = self.files.read(&path) else {
                continue;
            };
            found = true;
            self.read += 1;
            if self.read > MOST_FILES {
                say(
                    self,
                    Severity::Error,
                    Rule::TooMuch {
                        what: "files",
                        most: MOST_FILES,
                    },
                );
                return Err(Invalid);
            }
            self.file(&path, &content, current)?;
        }
        if !found && !try_include {
            say(self, Severity::Error, Rule::IncludeMissing(path.into()));
            return Err(Invalid);
        }
        Ok(())
    }

    /// `name = value`, `name => value`, `name += value`
    fn variable(
        &mut self,
        text: &str,
        broken: bool,
        place: &Place,
        current: Option<usize>,
    ) -> Result<(), Invalid> {
        if current.is_none() {
            self.say_option(Severity::Error, place, option(text), Rule::NoSection);
            return Err(Invalid);
        }
        // A leading \ escapes the first character: such a line is a variable whatever it starts with.
        let (escaped, text) = match text.strip_prefix('\\') {
            Some(rest) if rest.chars().next().is_none_or(|c| c <= ' ') => {
                return self.invalid(place, Rule::Escape);
            }
            Some(rest) => (rest.chars().next().map_or(0, char::len_utf8), rest),
            None => (0, text),
        };
        let Some(equal) = text
            .get(escaped..)
            .and_then(|rest| rest.find('='))
            .map(|at| at + escaped)
        else {
            self.say(Severity::Warning, place, Rule::NoEqualSign);
            return Ok(());
        };
        let (before, after) = (
            text.get(..equal).unwrap_or_default(),
            text.get(equal + 1..).unwrap_or_default(),
        );
        let (name, value, appends) = match before.strip_suffix('+') {
            Some(name) if equal > escaped => (strip(name), strip(after), true),
            _ => (
                strip(before),
                strip(after.strip_prefix('>').unwrap_or(after)),
                false,
            ),
        };
        if name.is_empty() {
            self.say(Severity::Warning, place, Rule::NoName);
            return Ok(());
        }
        self.variables += 1;
        if self.variables > MOST_VARIABLES {
            return self.too_many_variables(place);
        }
        let Some(section) = current.and_then(|index| self.sections.get_mut(index)) else {
            return Ok(());
        };
        if section.variables.len() >= MOST_IN_SECTION {
            return self.invalid(
                place,
                Rule::TooMuch {
                    what: "options in a section",
                    most: MOST_IN_SECTION,
                },
            );
        }
        let variables = &mut section.variables;
        let last = match appends {
            true => variables
                .iter_mut()
                .rfind(|variable| *variable.name == *name),
            false => None,
        };
        match last {
            Some(last) if last.value.len() + value.len() > LONGEST_VALUE => {
                return self.invalid(
                    place,
                    Rule::TooMuch {
                        what: "bytes in a value",
                        most: LONGEST_VALUE,
                    },
                );
            }
            Some(last) => {
                last.value = format!("{}{value}", last.value).into();
                last.broken |= broken;
                last.place = place.clone();
            }
            None => section.variables.push(Variable {
                name: name.into(),
                value: value.into(),
                place: place.clone(),
                broken,
            }),
        }
        Ok(())
    }

    /// About a line as a whole, in the section in which it stands.
    fn say(&mut self, severity: Severity, place: &Place, rule: Rule) {
        self.say_option(severity, place, None, rule);
    }

    fn say_option(&mut self, severity: Severity, place: &Place, option: Option<&str>, rule: Rule) {
        let standing = self.standing.and_then(|index| self.sections.get(index));
        self.diagnostics.push(Diagnostic {
            severity,
            file: Arc::clone(&place.file),
            line: place.line,
            section: standing.map(|section| Arc::clone(&section.name)),
            option: option.map(Arc::from),
            value: None,
            rule,
        });
    }

    /// About the header of a section.
    fn about(&mut self, severity: Severity, place: &Place, section: &Arc<str>, rule: Rule) {
        self.say(severity, place, rule);
        if let Some(said) = self.diagnostics.last_mut() {
            said.section = Some(Arc::clone(section));
        }
    }

    fn invalid<T>(&mut self, place: &Place, rule: Rule) -> Result<T, Invalid> {
        self.say(Severity::Error, place, rule);
        Err(Invalid)
    }

    fn invalid_about<T>(
        &mut self,
        place: &Place,
        section: &Arc<str>,
        rule: Rule,
    ) -> Result<T, Invalid> {
        self.about(Severity::Error, place, section, rule);
        Err(Invalid)
    }

    fn too_many_variables<T>(&mut self, place: &Place) -> Result<T, Invalid> {
        let what = "options, inherited ones included";
        self.invalid(
            place,
            Rule::TooMuch {
                what,
                most: MOST_VARIABLES,
            },
        )
    }
}

/// What stands before the `=` of a line.
fn option(text: &str) -> Option<&str> {
    let (name, _) = text.split_once('=')?;
    Some(strip(name.trim_end_matches('+'))).filter(|name| !name.is_empty())
}

/// What a line with a `#` starts with, up to where a value may begin.
fn word(text: &str) -> &str {
    let in_word = |c: char| c.is_ascii_alphanumeric() || "#_-".contains(c);
    let end = text.find(|c| !in_word(c)).unwrap_or(text.len());
    text.get(..end).unwrap_or_default()
}

/// Without what Asterisk takes for blank: all characters up to the space.
fn strip(text: &str) -> &str {
    text.trim_matches(|c| c <= ' ')
}

/// Whether a text of a filter is a regular expression that means itself, but for `^`, `$` and `.`.
fn is_plain(text: &str) -> bool {
    let inner = text.strip_prefix('^').unwrap_or(text);
    let inner = inner.strip_suffix('$').unwrap_or(inner);
    !inner.contains([
        '^', '$', '*', '+', '?', '(', ')', '[', ']', '{', '}', '|', '\\',
    ])
}

/// Whether the expression is found in the text.
fn contains(text: &str, expression: &str) -> bool {
    let (start, inner) = expression
        .strip_prefix('^')
        .map_or((false, expression), |rest| (true, rest));
    let (end, inner) = inner
        .strip_suffix('$')
        .map_or((false, inner), |rest| (true, rest));
    let same = |at: &str| {
        let mut rest = at.chars();
        let fits = inner
            .chars()
            .all(|wanted| rest.next().is_some_and(|c| wanted == '.' || wanted == c));
        fits && (!end || rest.next().is_none())
    };
    let mut starts = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    if start {
        return same(text);
    }
    starts.any(|at| text.get(at..).is_some_and(same))
}

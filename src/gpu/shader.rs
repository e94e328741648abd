//! From a `.wgsl` template to a checked naga module, with errors at the original file and line.
//!
//! Every source line gets an invisible mark (file, line) before the template engine runs; repeated and included text
//! keeps its marks, so each line of the expanded text knows where it came from.

use super::caps::Caps;
use super::kernel::Const;
use crate::error::{Error, Kind, Result};
use include_dir::{Dir, include_dir};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior};
use std::collections::BTreeMap;
use std::sync::OnceLock;

static SHADERS: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/shaders");

const MARK: char = '\u{1}';
const END: char = '\u{2}';

/// Names of all shader files, shared ones included.
pub fn shader_files() -> Vec<&'static str> {
    fn walk(dir: &'static Dir<'static>, out: &mut Vec<&'static str>) {
        out.extend(dir.files().filter_map(|f| f.path().to_str()).filter(|p| p.ends_with(".wgsl")));
        dir.dirs().for_each(|d| walk(d, out));
    }
    let mut out = Vec::new();
    walk(&SHADERS, &mut out);
    out.sort_unstable();
    out
}

/// Expanded WGSL and where each of its lines came from.
pub struct Rendered {
    pub text: String,
    /// For each line of `text`: index into `shader_files()` and line number from 1.
    origin: Vec<(usize, u32)>,
}

impl Rendered {
    /// `file.wgsl:12` for line `line` (from 1) of the expanded text.
    pub fn origin(&self, line: u32) -> String {
        match self.origin.get((line as usize).saturating_sub(1)) {
            Some(&(file, line)) => format!("{}:{line}", shader_files().get(file).unwrap_or(&"?")),
            None => format!("expanded line {line}"),
        }
    }

    /// The file that most lines came from.
    fn file(&self) -> String {
        let mut counts = BTreeMap::new();
        self.origin.iter().for_each(|o| *counts.entry(o.0).or_insert(0) += 1);
        let most = counts.into_iter().max_by_key(|c| c.1).map(|c| c.0).unwrap_or(0);
        shader_files().get(most).unwrap_or(&"the shader").to_string()
    }

    /// Where entry point `entry` begins, for errors that come without a place.
    pub fn entry_line(&self, entry: &str) -> String {
        let begins = format!("fn {entry}(");
        match self.text.lines().position(|l| l.contains(&begins)) {
            Some(line) => self.origin(line as u32 + 1),
            None => entry.to_string(),
        }
    }

    /// Parses and validates for an adapter, or with nothing left out; errors name the original file and line and quote it.
    pub fn parse(&self, adapter: Option<&Caps>) -> Result<(naga::Module, naga::valid::ModuleInfo)> {
        let fail = |line: Option<u32>, message: String| {
            let place = line.map(|l| self.origin(l)).unwrap_or_else(|| self.file());
            let quote = line.and_then(|l| self.text.lines().nth(l as usize - 1)).map(str::trim).unwrap_or_default();
            Error::new(Kind::Shader, format!("compile {place}"), format!("{message}\n    | {quote}"))
        };
        let module = naga::front::wgsl::parse_str(&self.text)
            .map_err(|e| fail(e.location(&self.text).map(|l| l.line_number), e.message().to_string()))?;
        let info = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities(adapter))
            .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
            .subgroup_operations(naga::valid::SubgroupOperationSet::all())
            .validate(&module)
            .map_err(|e| {
                let mut chain = e.as_inner().to_string();
                let mut source = std::error::Error::source(e.as_inner());
                while let Some(inner) = source {
                    chain += &format!(": {inner}");
                    source = inner.source();
                }
                fail(e.location(&self.text).map(|l| l.line_number), chain)
            })?;
        Ok((module, info))
    }
}

/// What a shader may use on an adapter: what wgpu will allow there, so that it is refused here, where lines are known.
fn capabilities(adapter: Option<&Caps>) -> naga::valid::Capabilities {
    use naga::valid::Capabilities as C;
    let Some(caps) = adapter else { return C::all() };
    let mut allowed = C::IMMEDIATES;
    allowed.set(C::SHADER_FLOAT16, caps.f16);
    allowed.set(C::SHADER_FLOAT16_IN_FLOAT32, true);
    allowed.set(C::SUBGROUP, caps.subgroup.is_some());
    allowed.set(C::COOPERATIVE_MATRIX, !caps.coop.is_empty());
    allowed
}

fn environment() -> &'static Environment<'static> {
    static ENVIRONMENT: OnceLock<Environment<'static>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        env.set_syntax(whole_line_statements());
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        for (index, name) in shader_files().into_iter().enumerate() {
            let source = SHADERS.get_file(name).and_then(|f| f.contents_utf8()).unwrap_or_default();
            // A template that does not parse is reported when it is asked for, at its own line.
            let _ = env.add_template_owned(name, marked(index, source));
        }
        env
    })
}

/// A statement on a line of its own leaves no line behind.
fn whole_line_statements() -> SyntaxConfig {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap_or_default()
}

/// Ends every line of text with its origin. Lines that are statements alone stay as they are, so that they vanish whole.
fn marked(file: usize, source: &str) -> String {
    let mut out = String::with_capacity(source.len() * 2);
    for (number, line) in source.lines().enumerate() {
        out.push_str(line);
        let trimmed = line.trim();
        let statement = trimmed.starts_with("{%") && trimmed.ends_with("%}");
        if !statement && !trimmed.is_empty() {
            out.push_str(&format!("{MARK}{file}:{}{END}", number + 1));
        }
        out.push('\n');
    }
    out
}

/// Expands `file` with `constants`. Includes see the same constants.
pub fn render(file: &str, constants: &BTreeMap<&'static str, Const>) -> Result<Rendered> {
    let attempt = |e: &minijinja::Error| {
        let place = match (e.name(), e.line()) {
            (Some(name), Some(line)) => format!("{name}:{line}"),
            _ => file.to_string(),
        };
        format!("expand {place}")
    };
    let fail = |e: minijinja::Error| {
        // The cause of an error inside an include is the innermost of the chain.
        let mut text = e.to_string();
        let mut source = std::error::Error::source(&e);
        while let Some(inner) = source {
            text += &format!(": {inner}");
            source = inner.source();
        }
        Error::new(Kind::Shader, attempt(&e), text)
    };
    if SHADERS.get_file(file).is_none() {
        return Err(Error::new(Kind::Shader, format!("expand {file}"), "there is no such shader file"));
    }
    let template = match environment().get_template(file) {
        Ok(template) => template,
        // Not in the environment although the file exists: it did not parse. Parse again for the reason.
        Err(_) => {
            let source = SHADERS.get_file(file).and_then(|f| f.contents_utf8()).unwrap_or_default();
            let mut env = Environment::new();
            return match env.add_template_owned(file.to_string(), source.to_string()) {
                Err(e) => Err(fail(e)),
                Ok(()) => Err(Error::new(Kind::Shader, format!("expand {file}"), "the template could not be loaded")),
            };
        }
    };
    let context: BTreeMap<&str, minijinja::Value> = constants.iter().map(|(k, v)| (*k, v.value())).collect();
    let expanded = template.render(context).map_err(fail)?;
    Ok(unmark(&expanded))
}

fn unmark(expanded: &str) -> Rendered {
    let mut text = String::with_capacity(expanded.len());
    let mut origin = Vec::new();
    let mut last = (0, 0);
    let mut push = |line: &str, from: (usize, u32)| {
        text.push_str(line);
        text.push('\n');
        origin.push(from);
    };
    for line in expanded.lines() {
        let mut plain = String::with_capacity(line.len());
        let mut rest = line;
        while let Some(start) = rest.find(MARK) {
            plain.push_str(&rest[..start]);
            let Some(end) = rest[start..].find(END) else { break };
            if let Some((file, number)) = rest[start + MARK.len_utf8()..start + end].split_once(':') {
                last = (file.parse().unwrap_or(0), number.parse().unwrap_or(0));
            }
            rest = &rest[start + end + END.len_utf8()..];
        }
        plain.push_str(rest);
        if !plain.trim().is_empty() {
            push(plain.trim_end(), last);
        }
    }
    // The extension has to be named before anything else in the text, wherever the first f16 stands.
    if uses_f16(&text) {
        text.insert_str(0, "enable f16;\n");
        origin.insert(0, origin.first().copied().unwrap_or((0, 0)));
    }
    Rendered { text, origin }
}

fn uses_f16(text: &str) -> bool {
    let code = text.lines().map(|l| l.split("//").next().unwrap_or(l));
    let word = |c: char| !(c.is_alphanumeric() || c == '_');
    let mut named = false;
    for line in code {
        if line.trim_start().starts_with("enable f16") {
            return false;
        }
        named |= line.split(word).any(|w| w == "f16" || matches!(w, "vec2h" | "vec3h" | "vec4h"));
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_line_keeps_the_place_it_came_from() {
        let source = "a\n{% for i in range(2) %}\nb{{ i }}\n{% endfor %}\nc\n";
        let mut env = Environment::new();
        env.set_syntax(whole_line_statements());
        env.add_template_owned("x", marked(0, source)).unwrap();
        let rendered = unmark(&env.get_template("x").unwrap().render(()).unwrap());
        assert_eq!(rendered.text, "a\nb0\nb1\nc\n");
        assert_eq!(rendered.origin.iter().map(|o| o.1).collect::<Vec<_>>(), [1, 3, 3, 5]);
    }

    #[test]
    fn a_wgsl_mistake_is_reported_at_the_template_line() {
        let source =
            "fn f() -> u32 {\n  return 1u;\n}\n{% if true %}\nfn g() -> u32 { return nothing; }\n{% endif %}\n";
        let mut env = Environment::new();
        env.add_template_owned("x", marked(0, source)).unwrap();
        let rendered = unmark(&env.get_template("x").unwrap().render(()).unwrap());
        let error = rendered.parse(None).expect_err("`nothing` is not defined");
        assert!(error.attempted[0].ends_with(":5"), "{error}");
    }

    #[test]
    fn f16_is_enabled_where_code_names_it_and_not_for_a_comment() {
        assert!(uses_f16("var x: f16;"));
        assert!(!uses_f16("// f16 storage\nvar x: f32;"));
    }

    #[test]
    fn an_undefined_constant_is_an_error_with_its_name() {
        let error = render("shared/step.wgsl", &BTreeMap::new()).err().expect("STEP_BINDING is undefined");
        assert!(error.to_string().contains("shared/step.wgsl"), "{error}");
    }
}

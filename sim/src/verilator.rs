//! The generated Verilog as a second simulator, by Verilator: lint, model, and the same interface for
//! any block.
//!
//! A [`Model`] is a shared library that Verilator and the C++ compiler make once for each text of
//! Verilog; it is kept in a folder, by default `target/verilated`, and found again by its text.

use hdl::block_ports::{Direction, PortVisitor, Ports};
use hdl::prelude::{generate_verilog, Block};
use libloading::{Library, Symbol};
use std::ffi::c_void;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What can go wrong between a block and its Verilated model.
#[derive(Debug, thiserror::Error)]
pub enum VerilatorError {
    /// A tool can't be started.
    #[error("{tool} can't be started ({source}); `make tools` installs it")]
    Missing {
        /// The program.
        tool: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A tool refused its input.
    #[error("{tool} failed in {folder}:\n{output}")]
    Failed {
        /// The program.
        tool: &'static str,
        /// Where its input lies.
        folder: PathBuf,
        /// What it said.
        output: String,
    },
    /// A file of the cache can't be made or read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The shared library can't be loaded.
    #[error("{path}: {source}; remove its folder to have it built again")]
    Library {
        /// The library.
        path: PathBuf,
        /// Why.
        #[source]
        source: libloading::Error,
    },
}

/// A port of a block.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Port {
    /// Name in the Verilog.
    pub name: String,
    /// Direction.
    pub direction: Direction,
    /// Width, up to 128.
    pub bits: usize,
}

/// The ports of `block`, in the order that [`Model`] numbers them by.
pub fn ports_of<B: Ports>(block: &B) -> Vec<Port> {
    struct List(Vec<Port>);
    impl PortVisitor for List {
        fn port(&mut self, name: &str, index: Option<usize>, direction: Direction, bits: usize, _: u128) {
            let name = match index {
                Some(index) => format!("{name}${index}"),
                None => name.to_owned(),
            };
            self.0.push(Port { name, direction, bits });
        }
    }
    let mut list = List(vec![]);
    block.visit_ports(&mut list);
    list.0
}

/// A signal inside a block that a model shows beside the block's ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// Where it is below the block, in Verilog: `leaf.now$q`.
    pub path: String,
    /// Width, up to 128.
    pub bits: usize,
}

/// How a model is made of a block beyond its ports.
#[derive(Clone, Debug, Default)]
pub struct Wrapping {
    /// Further outputs, numbered on from the block's ports.
    pub probes: Vec<Probe>,
    /// Inputs by number that change together and never with a rising clock; none in two groups. They are held in
    /// registers, each group taken over as a whole, so that what follows from it is evaluated only when it has
    /// changed: Verilator evaluates what follows from plain inputs at every evaluation.
    pub groups: Vec<Vec<usize>>,
}

/// What the lint may not complain of, and why.
const WAIVERS: &str = include_str!("../../tools/lint.vlt");

/// Lints Verilog with all of Verilator's warnings but those that `tools/lint.vlt` waives.
pub fn lint(verilog: &str, cache: &Path) -> Result<(), VerilatorError> {
    let folder = cache.join("lint");
    let file = folder.join(format!("{:016x}.v", hash_of(verilog)));
    make_folder(&folder)?;
    write(&file, verilog)?;
    let waivers = file.with_extension("vlt");
    write(&waivers, WAIVERS)?;
    let mut command = Command::new("verilator");
    command.args(["--lint-only", "-Wall", "--top-module", "top"]);
    command.args([&waivers, &file]);
    run(command, "verilator", &folder)
}

/// Where an installed program keeps its models: `CHRONO_VERILATED` if set, otherwise `chronoswitch/verilated` in
/// the user's cache (`XDG_CACHE_HOME`, or `.cache` in the home folder), or where temporary files are.
pub fn user_cache() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = set("CHRONO_VERILATED") {
        return folder;
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("chronoswitch/verilated")
}

/// Where models are kept by tests: `verilated` in the build's target folder.
pub fn default_cache() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
    target.join("verilated")
}

type New = unsafe extern "C" fn() -> *mut c_void;
type Delete = unsafe extern "C" fn(*mut c_void);
type Eval = unsafe extern "C" fn(*mut c_void);
type Set = unsafe extern "C" fn(*mut c_void, u32, u64, u64);
type Get = unsafe extern "C" fn(*mut c_void, u32, *mut u64);
type Outputs = unsafe extern "C" fn(*mut c_void, *mut u64);

/// A Verilated block.
///
/// Set inputs, [`eval`](Model::eval), get outputs. Ports go by number, the index in [`ports`](Model::ports);
/// set all inputs that change together, then evaluate once.
pub struct Model {
    ports: Vec<Port>,
    handle: *mut c_void,
    delete: Delete,
    eval: Eval,
    set: Set,
    get: Get,
    outputs: Outputs,
    output_words: usize,
    // Last: what the pointers above point into must outlive them.
    _library: Library,
}

// SAFETY: the model behind `handle` has no thread-local state, belongs to this `Model` alone, and is
// only touched through `&mut self`.
unsafe impl Send for Model {}

impl Model {
    /// The Verilated `block` in its power-up state, built if `cache` doesn't have it. The block must be
    /// connected.
    pub fn of<B: Block + Ports>(block: &B, cache: &Path) -> Result<Self, VerilatorError> {
        Self::build(&generate_verilog(block), &ports_of(block), cache)
    }

    /// The same, wrapped.
    pub fn wrapped<B: Block + Ports>(
        block: &B,
        wrapping: &Wrapping,
        cache: &Path,
    ) -> Result<Self, VerilatorError> {
        let (verilog, ports) = wrap(&generate_verilog(block), &ports_of(block), wrapping);
        Self::compiled(&verilog, &ports, &wrapping.groups, cache)
    }

    /// The model of Verilog whose module `top` has these ports.
    pub fn build(verilog: &str, ports: &[Port], cache: &Path) -> Result<Self, VerilatorError> {
        Self::compiled(verilog, ports, &[], cache)
    }

    fn compiled(
        verilog: &str,
        ports: &[Port],
        groups: &[Vec<usize>],
        cache: &Path,
    ) -> Result<Self, VerilatorError> {
        let harness = harness(ports, groups);
        let key = hash_of(&(verilog, &harness, FLAGS, OPTIMISE, processor()));
        let folder = cache.join(format!("{key:016x}"));
        let file = folder.join(LIBRARY);
        if !file.exists() {
            compile(verilog, &harness, &folder)?;
        }
        Self::load(&file, ports)
    }

    fn load(file: &Path, ports: &[Port]) -> Result<Self, VerilatorError> {
        let broken = |source| VerilatorError::Library { path: file.to_owned(), source };
        // SAFETY: the library is the one that `compile` made from our harness: it has no constructors
        // beyond those of Verilator's runtime, and the symbols have the types that `harness` declares.
        unsafe {
            let library = Library::new(file).map_err(broken)?;
            let new: Symbol<New> = library.get(b"model_new\0").map_err(broken)?;
            let delete = *library.get::<Delete>(b"model_delete\0").map_err(broken)?;
            let eval = *library.get::<Eval>(b"model_eval\0").map_err(broken)?;
            let set = *library.get::<Set>(b"model_set\0").map_err(broken)?;
            let get = *library.get::<Get>(b"model_get\0").map_err(broken)?;
            let outputs = *library.get::<Outputs>(b"model_outputs\0").map_err(broken)?;
            let handle = new();
            let output_words = output_words(ports);
            let ports = ports.to_vec();
            Ok(Self { ports, handle, delete, eval, set, get, outputs, output_words, _library: library })
        }
    }

    /// Every port; its place here is its number.
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// The number of the port of this name.
    pub fn port(&self, name: &str) -> Option<usize> {
        self.ports.iter().position(|port| port.name == name)
    }

    /// Sets an input. Panics if `port` is none or the value doesn't fit it.
    pub fn set(&mut self, port: usize, value: u128) {
        let Port { name, direction, bits } = &self.ports[port];
        assert!(*direction == Direction::In, "{name} is an output");
        assert!(*bits == 128 || value >> bits == 0, "{value:#x} doesn't fit the {bits} bits of {name}");
        // SAFETY: `handle` is a live model, and `port` is below the number of ports that its harness
        // was made for.
        unsafe { (self.set)(self.handle, port as u32, value as u64, (value >> 64) as u64) }
    }

    /// [`set`](Self::set) for an input of up to 64 bits, in the innermost loop: what lies above its width is
    /// the caller's to keep zero. A number that is no input's does nothing.
    #[inline(always)]
    pub fn put(&mut self, port: usize, value: u64) {
        debug_assert!(self.ports[port].bits == 64 || value >> self.ports[port].bits == 0);
        // SAFETY: `handle` is a live model; the harness leaves alone what it has no number for.
        unsafe { (self.set)(self.handle, port as u32, value, 0) }
    }

    /// The values of all outputs in the order of their numbers, one word each, two above 64 bits.
    #[inline(always)]
    pub fn outputs(&self, words: &mut [u64]) {
        assert_eq!(words.len(), self.output_words, "a word for each output, two above 64 bits");
        // SAFETY: `handle` is a live model, and the harness writes as many words as were counted from the
        // ports that it was made for.
        unsafe { (self.outputs)(self.handle, words.as_mut_ptr()) }
    }

    /// How many words [`outputs`](Self::outputs) gives.
    pub fn output_words(&self) -> usize {
        self.output_words
    }

    /// Lets everything settle that follows from the inputs.
    #[inline(always)]
    pub fn eval(&mut self) {
        // SAFETY: `handle` is a live model.
        unsafe { (self.eval)(self.handle) }
    }

    /// The value of a port. Panics if `port` is none.
    pub fn get(&self, port: usize) -> u128 {
        assert!(port < self.ports.len(), "there is no port {port}");
        let mut words = [0u64; 2];
        // SAFETY: as in `set`; the harness writes both words and nothing else.
        unsafe { (self.get)(self.handle, port as u32, words.as_mut_ptr()) }
        words[0] as u128 | (words[1] as u128) << 64
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: `handle` came from `model_new` and is given back once.
        unsafe { (self.delete)(self.handle) }
    }
}

const LIBRARY: &str = "libmodel.so";
const FLAGS: &[&str] = &[
    "--cc",
    "--exe",
    "-O3",
    "--x-assign",
    "0",
    "--x-initial",
    "0",
    "--noassert",
    "-Wno-fatal",
    "-Wno-lint",
    "-Wno-UNOPTFLAT",
    "--top-module",
    "top",
    "--prefix",
    "Top",
    "-CFLAGS",
    "-fPIC",
    "-LDFLAGS",
    "-shared",
];
/// For the processor that it is built on: a quarter faster. Verilator's own runtime isn't in the way of the model;
/// built plainly the whole takes a third of the time.
const OPTIMISE: &[&str] = &["OPT_FAST=-O3 -march=native", "OPT_SLOW=-O0", "OPT_GLOBAL=-O0"];

/// What the processor can do, as far as the system says: a model is kept for one that can do the same.
fn processor() -> String {
    let told = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = told.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    line.unwrap_or_default().to_owned()
}

fn compile(verilog: &str, harness: &str, folder: &Path) -> Result<(), VerilatorError> {
    // Built beside and renamed: two tests may want the same model at the same time.
    let work = folder.with_extension(format!("{}.{:?}", std::process::id(), std::thread::current().id()));
    make_folder(&work)?;
    write(&work.join("top.v"), verilog)?;
    write(&work.join("harness.cpp"), harness)?;
    let mut command = Command::new("verilator");
    command.args(FLAGS).args(["--Mdir", "obj", "-o", LIBRARY, "top.v", "harness.cpp"]);
    command.current_dir(&work);
    run(command, "verilator", &work)?;
    let mut command = Command::new("make");
    command.args(["-C", "obj", "-f", "Top.mk", "-j2"]).args(OPTIMISE).current_dir(&work);
    run(command, "make", &work)?;
    let library = work.join(LIBRARY);
    let built = work.join("obj").join(LIBRARY);
    std::fs::rename(&built, &library).map_err(|source| VerilatorError::File { path: built, source })?;
    // The objects are ten times the library's size. Leftovers do no harm.
    let _ = std::fs::remove_dir_all(work.join("obj"));
    if let Err(source) = std::fs::rename(&work, folder) {
        if !folder.join(LIBRARY).exists() {
            return Err(VerilatorError::File { path: work, source });
        }
        let _ = std::fs::remove_dir_all(&work);
    }
    Ok(())
}

fn run(mut command: Command, tool: &'static str, folder: &Path) -> Result<(), VerilatorError> {
    let output = command.output().map_err(|source| VerilatorError::Missing { tool, source })?;
    if output.status.success() {
        return Ok(());
    }
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.trim().is_empty() {
        said = String::from_utf8_lossy(&output.stdout).into_owned();
    }
    Err(VerilatorError::Failed { tool, folder: folder.to_owned(), output: said })
}

fn make_folder(path: &Path) -> Result<(), VerilatorError> {
    std::fs::create_dir_all(path).map_err(|source| VerilatorError::File { path: path.to_owned(), source })
}

fn write(path: &Path, text: &str) -> Result<(), VerilatorError> {
    std::fs::write(path, text).map_err(|source| VerilatorError::File { path: path.to_owned(), source })
}

fn hash_of<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The member that Verilator's C++ class has for a port of this name.
fn member(name: &str) -> String {
    name.chars().fold(String::new(), |mut member, c| {
        match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' => member.push(c),
            other => write!(member, "__0{:02X}", other as u32).expect("writing to a string"),
        }
        member
    })
}

/// The name of the input whose change makes a group of inputs be taken over.
fn take_name(group: usize) -> String {
    format!("take${group}")
}

/// Verilog with a `top` around the `top` that was, whose further outputs are the probes.
fn wrap(verilog: &str, ports: &[Port], wrapping: &Wrapping) -> (String, Vec<Port>) {
    let mut all = ports.to_vec();
    all.extend(wrapping.probes.iter().enumerate().map(|(number, probe)| Port {
        name: format!("probe${number}"),
        direction: Direction::Out,
        bits: probe.bits,
    }));
    let group_of = |number| wrapping.groups.iter().position(|group| group.contains(&number));
    let mut declared: Vec<String> = all
        .iter()
        .map(|Port { name, direction, bits }| {
            let direction = if *direction == Direction::In { "input" } else { "output" };
            format!("{direction} wire [{}:0] {name}", bits - 1)
        })
        .collect();
    declared.extend((0..wrapping.groups.len()).map(|group| format!("input wire {}", take_name(group))));
    let connected = ports.iter().enumerate().map(|(number, Port { name, .. })| match group_of(number) {
        Some(_) => format!(".{name}(held${name})"),
        None => format!(".{name}({name})"),
    });
    let mut wrapper = format!("module top({});\n", declared.join(", "));
    for (number, Port { name, bits, .. }) in ports.iter().enumerate() {
        if let Some(take) = group_of(number).map(take_name) {
            let top = bits - 1;
            wrapper += &format!(
                "reg [{top}:0] held${name} = 0;\n\
                 always @(posedge {take} or negedge {take}) held${name} <= {name};\n"
            );
        }
    }
    wrapper += &format!("wrapped block({});\n", connected.collect::<Vec<_>>().join(", "));
    for (number, probe) in wrapping.probes.iter().enumerate() {
        wrapper += &format!("assign probe${number} = block.{};\n", probe.path);
    }
    wrapper += "endmodule\n";
    // RustHDL writes a block's head as `module top(`, and everything below as `top$...`.
    let inner = verilog.replacen("module top(", "module wrapped(", 1);
    (inner + &wrapper, all)
}

/// Words of all outputs.
fn output_words(ports: &[Port]) -> usize {
    ports.iter().filter(|port| port.direction == Direction::Out).map(|port| port.bits.div_ceil(64)).sum()
}

/// The C++ that gives every port a number, and takes over the groups of inputs in which one was set.
fn harness(ports: &[Port], groups: &[Vec<usize>]) -> String {
    assert!(groups.len() <= 32, "{} groups", groups.len());
    let takes: String = (0..groups.len())
        .map(|group| format!("    if (model->set >> {group} & 1) top.{} ^= 1;\n", member(&take_name(group))))
        .collect();
    let (mut set, mut get, mut outputs) = (String::new(), String::new(), String::new());
    let mut word = 0;
    for (number, Port { name, direction, bits }) in ports.iter().enumerate() {
        assert!((1..=128).contains(bits), "{name} has {bits} bits, not 1 to 128");
        let member = member(name);
        let words = bits.div_ceil(32);
        if *direction == Direction::In {
            let body = if *bits <= 64 {
                format!("top.{member} = low;")
            } else {
                (0..words)
                    .map(|w| {
                        let half = if w < 2 { "low" } else { "high" };
                        format!("top.{member}[{w}] = (uint32_t)({half} >> {});", w % 2 * 32)
                    })
                    .collect()
            };
            let held = match groups.iter().position(|group| group.contains(&number)) {
                Some(group) => format!(" set |= 1u << {group};"),
                None => String::new(),
            };
            writeln!(set, "    case {number}: {body}{held} break;").expect("writing to a string");
        }
        let body = if *bits <= 64 {
            format!("words[0] = top.{member};")
        } else {
            (0..words)
                .map(|w| format!("words[{}] |= (uint64_t)top.{member}[{w}] << {};", w / 2, w % 2 * 32))
                .collect()
        };
        writeln!(get, "    case {number}: {body} break;").expect("writing to a string");
        if *direction == Direction::Out {
            let body = if *bits <= 64 {
                format!("words[{word}] = top.{member};")
            } else {
                let part = |w| format!("(uint64_t)top.{member}[{w}]");
                let high = if words == 4 { format!(" | {} << 32", part(3)) } else { String::new() };
                let (low, middle) = (part(0), part(1));
                format!("words[{word}] = {low} | {middle} << 32; words[{}] = {}{high};", word + 1, part(2))
            };
            writeln!(outputs, "    {body}").expect("writing to a string");
            word += bits.div_ceil(64);
        }
    }
    format!(
        r#"#include "Top.h"
#include "verilated.h"
#include <cstdint>
struct Model {{ VerilatedContext context; Top top{{&context}}; uint32_t set = 0; }};
extern "C" void* model_new() {{ Model* model = new Model; model->top.eval(); return model; }}
extern "C" void model_delete(void* model) {{ static_cast<Model*>(model)->top.final(); delete static_cast<Model*>(model); }}
extern "C" void model_eval(void* pointer) {{
    Model* model = static_cast<Model*>(pointer);
    Top& top = model->top;
{takes}    model->set = 0;
    top.eval();
}}
extern "C" void model_set(void* model, uint32_t port, uint64_t low, uint64_t high) {{
    Top& top = static_cast<Model*>(model)->top;
    uint32_t& set = static_cast<Model*>(model)->set;
    (void)high;
    (void)set;
    switch (port) {{
{set}    }}
}}
extern "C" void model_get(void* model, uint32_t port, uint64_t* words) {{
    Top& top = static_cast<Model*>(model)->top;
    words[0] = words[1] = 0;
    switch (port) {{
{get}    }}
}}
extern "C" void model_outputs(void* model, uint64_t* words) {{
    Top& top = static_cast<Model*>(model)->top;
    (void)words;
    (void)top;
{outputs}}}
double sc_time_stamp() {{ return 0; }}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wrapped_block_is_inside() {
        let port = |name: &str, bits| Port { name: name.into(), direction: Direction::In, bits };
        let wrapping =
            Wrapping { probes: vec![Probe { path: "now$q".into(), bits: 96 }], groups: vec![vec![1]] };
        let block = "module top(clock,data);\nendmodule\n";
        let (verilog, ports) = wrap(block, &[port("clock", 1), port("data", 8)], &wrapping);
        assert_eq!(
            verilog,
            "module wrapped(clock,data);\nendmodule\n\
             module top(input wire [0:0] clock, input wire [7:0] data, output wire [95:0] probe$0, \
             input wire take$0);\n\
             reg [7:0] held$data = 0;\n\
             always @(posedge take$0 or negedge take$0) held$data <= data;\n\
             wrapped block(.clock(clock), .data(held$data));\nassign probe$0 = block.now$q;\nendmodule\n"
        );
        assert_eq!((ports.len(), output_words(&ports)), (3, 2));
    }

    #[test]
    fn names_are_encoded_as_verilator_does() {
        assert_eq!(member("frame_data$3"), "frame_data__0243");
        assert_eq!(member("clock"), "clock");
    }
}

//! The policy: which parameters are FP8.

use std::ffi::c_char;

use crate::error::{Result, ensure, fail};
use crate::log::{self, Level};
use crate::policy::{Decision, Kind, Policy, Source};
use crate::recipe::{Recipe, ScaleFormat};

use super::convert::{
    self, array, descriptor, expect_flags, expect_present, expect_text, optional_text, required, required_mut,
    write_descriptor, write_text,
};
use super::guard::guard;
use super::types::*;

/// Settings, resolved. It does not change; any number of threads may ask it at once; creating and destroying are exclusive.
#[allow(non_camel_case_types)] // the C name
pub struct fp8rt_policy(Policy);

/// Reads settings. Warnings go to the log too, at FP8RT_LOG_WARNING.
///
/// NeMo-RL's keys for other things are ignored, but not one within two edits of a key that is read. In this library's own
/// object an unknown key is an error. The key "fp8rt" beside other settings is merged with them.
/// Errors: INVALID_ARGUMENT with the key and its value; UNSUPPORTED for a quantization that this library does not have
/// (is_mx, weight_block_size other than [128, 128], an activation_scheme other than dynamic); NULL_POINTER, STRUCT_SIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_policy_create(
    desc: *const fp8rt_policy_desc,
    policy: *mut *mut fp8rt_policy,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_policy_create", || unsafe {
        let policy = required_mut(policy, "policy")?;
        expect_present(desc, "desc")?;
        let desc = descriptor(desc, "desc")?;
        expect_flags(desc.flags, 0)?;
        ensure!(desc.reserved == 0, InvalidArgument, "reserved is {}, must be 0", desc.reserved);
        let source = Source {
            kind: kind(desc.kind)?,
            settings: optional_text(desc.settings, "settings")?,
            config: optional_text(desc.config, "config")?,
            packed_modules: optional_text(desc.packed_modules, "packed_modules")?,
            prefixes: optional_text(desc.prefixes, "prefixes")?,
        };
        let created = Policy::new(&source)?;
        for warning in created.warnings() {
            log::line(Level::Warning, || format!("policy: {warning}"));
        }
        *policy = Box::into_raw(Box::new(fp8rt_policy(created)));
        Ok(())
    })
}

fn kind(number: u32) -> Result<Kind> {
    const KINDS: [Kind; 5] = [Kind::Auto, Kind::NemoRl, Kind::HuggingFace, Kind::Verl, Kind::Fp8rt];
    match KINDS.get(number as usize) {
        Some(&kind) => Ok(kind),
        None => fail!(InvalidArgument, "kind is {number}, the largest policy kind is 4"),
    }
}

/// Destroys a policy. NULL is nothing. No call may be using it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_policy_destroy(policy: *mut fp8rt_policy) -> fp8rt_status {
    guard("fp8rt_policy_destroy", || {
        if !policy.is_null() {
            // SAFETY: made by `fp8rt_policy_create`, and used by nobody any more.
            drop(unsafe { Box::from_raw(policy) });
        }
        Ok(())
    })
}

/// What the policy says of the whole model. Set info->struct_size first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_policy_query(policy: *const fp8rt_policy, info: *mut fp8rt_policy_info) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_policy_query", || unsafe {
        let policy = &required(policy, "policy")?.0;
        expect_present(info, "info")?;
        let (first_layers, last_layers) = policy.kept_layers();
        let without_deep_gemm = fp8rt_backend::CUTLASS as u32
            | fp8rt_backend::CUBLASLT as u32
            | fp8rt_backend::PLAIN as u32
            | fp8rt_backend::CPU as u32;
        let value = fp8rt_policy_info {
            struct_size: 0,
            quantizes: policy.quantizes() as u32,
            backends: if policy.allows_deep_gemm() { 0 } else { without_deep_gemm },
            num_warnings: policy.warnings().len() as u32,
            first_layers,
            last_layers,
            num_hidden_layers: policy.layers().map_or(-1, i64::from),
        };
        write_descriptor(info, "info", &value)
    })
}

/// Writes warning `index` (below num_warnings) to `text`, zero-terminated and cut to `capacity` bytes. `length` (may be
/// NULL) receives the whole length without the zero. `text` may be NULL if `capacity` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_policy_warning(
    policy: *const fp8rt_policy,
    index: u32,
    text: *mut c_char,
    capacity: u64,
    length: *mut u64,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_policy_warning", || unsafe {
        let warnings = required(policy, "policy")?.0.warnings();
        let Some(warning) = warnings.get(index as usize) else {
            fail!(InvalidArgument, "index is {index}, there are {} warnings", warnings.len());
        };
        write_text(warning, text, capacity, length)
    })
}

/// Decides for a parameter of the checkpoint, "model.layers.0.self_attn.q_proj.weight", of `rank` extents in `shape`, or of
/// unknown shape if `rank` is 0. Set decision->struct_size first. The reason goes to `text` as fp8rt_policy_warning writes.
///
/// Parameters that an engine runs as one (q, k and v; gate and up; all experts of a layer) get one decision.
/// Errors: INVALID_ARGUMENT if the settings treat members of such a group differently, with the group and two members.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_policy_decide(
    policy: *const fp8rt_policy,
    name: *const c_char,
    rank: u32,
    shape: *const i64,
    decision: *mut fp8rt_policy_decision,
    text: *mut c_char,
    capacity: u64,
    length: *mut u64,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_policy_decide", || unsafe {
        let policy = &required(policy, "policy")?.0;
        let name = convert::text(name, "name")?;
        ensure!(rank <= MOST_EXTENTS, InvalidArgument, "rank is {rank}, at most {MOST_EXTENTS} is taken");
        let shape = array(shape, rank, "shape", "rank")?;
        let decided = policy.decide(name, (rank > 0).then_some(shape))?;
        answer(policy, decided, decision, Text { text, capacity, length })
    })
}

/// As fp8rt_policy_decide, for a module of an engine, "model.layers.0.self_attn.qkv_proj" or "model.layers.0.mlp.experts":
/// its prefix is translated, and a fused module gets the decision of its members.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_policy_decide_module(
    policy: *const fp8rt_policy,
    prefix: *const c_char,
    decision: *mut fp8rt_policy_decision,
    text: *mut c_char,
    capacity: u64,
    length: *mut u64,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_policy_decide_module", || unsafe {
        let policy = &required(policy, "policy")?.0;
        let decided = policy.decide_module(convert::text(prefix, "prefix")?)?;
        answer(policy, decided, decision, Text { text, capacity, length })
    })
}

/// No tensor of a model has more extents.
const MOST_EXTENTS: u32 = 16;

/// Where a text goes.
struct Text {
    text: *mut c_char,
    capacity: u64,
    length: *mut u64,
}

/// # Safety
/// Pointers as the header asks.
unsafe fn answer(policy: &Policy, decided: Decision, decision: *mut fp8rt_policy_decision, to: Text) -> Result<()> {
    let mut value = fp8rt_policy_decision {
        struct_size: 0,
        action: fp8rt_policy_action::KEEP as u32,
        weight_recipe: 0,
        weight_scale_format: 0,
        activation_recipe: 0,
        activation_scale_format: 0,
    };
    if let Some(forms) = decided.forms {
        value.action = fp8rt_policy_action::FP8 as u32;
        (value.weight_recipe, value.weight_scale_format) = (recipe(forms.weight.recipe), format(forms.weight.format));
        value.activation_recipe = recipe(forms.activation.recipe);
        value.activation_scale_format = format(forms.activation.format);
    }
    expect_present(decision, "decision")?;
    expect_text(to.text, to.capacity, to.length)?;
    // SAFETY: the caller's promise.
    unsafe {
        write_descriptor(decision, "decision", &value)?;
        if to.capacity == 0 && to.length.is_null() {
            return Ok(());
        }
        write_text(&policy.explain(decided.reason), to.text, to.capacity, to.length)
    }
}

fn recipe(recipe: Recipe) -> u32 {
    (match recipe {
        Recipe::Vllm => fp8rt_recipe::VLLM,
        Recipe::DeepGemm => fp8rt_recipe::DEEPGEMM,
        Recipe::NemoRl => fp8rt_recipe::NEMO_RL,
        Recipe::Te => fp8rt_recipe::TE,
    }) as u32
}

fn format(format: ScaleFormat) -> u32 {
    (match format {
        ScaleFormat::Fp32 => fp8rt_scale_format::FP32,
        ScaleFormat::Pow2 => fp8rt_scale_format::POW2,
        ScaleFormat::Ue8m0Packed => fp8rt_scale_format::UE8M0_PACKED,
    }) as u32
}

/// Writes the canonical text as fp8rt_policy_warning writes: JSON with sorted keys, of what decisions depend on and nothing
/// else. Equal for equal settings, whoever's they were, in any order of keys, on any machine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_policy_text(
    policy: *const fp8rt_policy,
    text: *mut c_char,
    capacity: u64,
    length: *mut u64,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_policy_text", || unsafe { write_text(required(policy, "policy")?.0.text(), text, capacity, length) })
}

/// The first 128 bits of the SHA-256 of the canonical text: bytes 0 to 7 of the hash are `low`, bytes 8 to 15 `high`,
/// each little-endian.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_policy_fingerprint(
    policy: *const fp8rt_policy,
    fingerprint: *mut fp8rt_fingerprint,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_policy_fingerprint", || unsafe {
        let [low, high] = required(policy, "policy")?.0.fingerprint();
        *required_mut(fingerprint, "fingerprint")? = fp8rt_fingerprint { low, high };
        Ok(())
    })
}

/// Compares with the canonical text of another policy, from another rank: `count` receives how many settings differ, and
/// `text`, as fp8rt_policy_warning writes, a line for each with its name and both values ("here" is this policy).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_policy_difference(
    policy: *const fp8rt_policy,
    other: *const c_char,
    count: *mut u32,
    text: *mut c_char,
    capacity: u64,
    length: *mut u64,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_policy_difference", || unsafe {
        let policy = &required(policy, "policy")?.0;
        let lines = policy.difference(convert::text(other, "other")?)?;
        let count = required_mut(count, "count")?;
        expect_text(text, capacity, length)?;
        *count = lines.len() as u32;
        write_text(&lines.join("\n"), text, capacity, length)
    })
}

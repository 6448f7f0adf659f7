// The two calls that run a linear.
#pragma once

namespace fp8rt_test {

enum class Form { kValues, kQuantized };
constexpr Form kForms[] = {Form::kValues, Form::kQuantized};

inline const char *name_of(Form form) {
  return form == Form::kValues ? "fp8rt_linear" : "fp8rt_linear_prequantized";
}

}  // namespace fp8rt_test

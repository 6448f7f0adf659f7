// R9 at every run of a linear, under FP8RT_CHECK=1: a host pointer given as device memory.

#include <gtest/gtest.h>

#include <cstdlib>
#include <vector>

#include "linear.hpp"

namespace fp8rt_test {
namespace {

// Before main, since the library may read it once.
const int kCheckIsSet = ::setenv("FP8RT_CHECK", "1", 1);

struct Role {
  const char *name;
  fp8rt_tensor LinearViews::*view;
  bool of_values, of_quantized;
};

constexpr Role kRoles[] = {
    {"x", &LinearViews::x, true, false},
    {"x", &LinearViews::x_codes, false, true},
    {"x_scales", &LinearViews::x_scales, false, true},
    {"weight", &LinearViews::weight, true, true},
    {"weight_scales", &LinearViews::weight_scales, true, true},
    {"bias", &LinearViews::bias, true, true},
    {"y", &LinearViews::y, true, true},
};

TEST(LinearChecked, R9HostPointersAreRefused) {
  ASSERT_EQ(kCheckIsSet, 0);
  LinearShape shape{21, 256, 384};
  shape.bias_dtype = FP8RT_DTYPE_F32;
  const LinearProblem problem = make_problem(shape);
  const Reference want = reference_of(problem);
  // Larger than any operand, and aligned as all of them.
  Workspace host_memory(1 << 20);
  DeviceLinear device(problem);
  const Stream stream;
  for (const Backend &backend : kBackends) {
    const auto plan = plan_by(backend, problem);
    if (!plan) {
      continue;
    }
    SCOPED_TRACE(plan->describe());
    const DeviceWorkspace workspace(plan->workspace(shape.m));
    ASSERT_OK(device.views().prepare(*plan, stream));
    for (const Form form : kForms) {
      const auto expect_refused = [&](const LinearViews &views, void *workspace_data, const char *name) {
        fp8rt_status status = FP8RT_STATUS_OK;
        device.blank_y();
        const Graph graph(stream, [&] { status = views.run(form, *plan, workspace_data, workspace.bytes(), stream); });
        EXPECT_TRUE(failed_with(status, FP8RT_STATUS_DEVICE, name_of(form), {name}));
        EXPECT_EQ(graph.nodes(), 0u) << name;
        EXPECT_TRUE(same_bytes(device.y.download(), device.blank)) << name;
      };
      for (const Role &role : kRoles) {
        if (form == Form::kValues ? role.of_values : role.of_quantized) {
          LinearViews views = device.views();
          (views.*role.view).data = host_memory.data();
          expect_refused(views, workspace.data(), role.name);
        }
      }
      if (workspace.bytes() > 0) {
        expect_refused(device.views(), host_memory.data(), "workspace");
      }
    }
    EXPECT_TRUE(is_right(*plan, device, want, shape.m));
  }
}

}  // namespace
}  // namespace fp8rt_test

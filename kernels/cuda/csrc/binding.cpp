// From torch tensors to the plain C launchers of a library that is opened at run time, on the current CUDA stream.
//
// The launchers live in a library of their own, so that a change of a kernel does not compile torch's headers again.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <dlfcn.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>

#include "launchers.h"

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The launchers of one kernel library.
class Kernels {
public:
    explicit Kernels(const std::string& path) : library_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
        TORCH_CHECK(library_ != nullptr, "cannot open ", path, ": ", dlerror());
        load("moecheck_gate", gate_);
        load("moecheck_plan", plan_);
        load("moecheck_starts", starts_);
        load("moecheck_place", place_);
        load("moecheck_blocks", blocks_);
        load("moecheck_scatter_rows", scatter_rows_);
        load("moecheck_gather_rows", gather_rows_);
        load("moecheck_sum_rows", sum_rows_);
    }

    void gate(const Tensor& logits, const OptionalTensor& logit_bias, const OptionalTensor& choice_bias,
              const OptionalTensor& expert_scale, const Tensor& weights, const Tensor& ids, py::dict options) const;
    void plan(const Tensor& ids, const OptionalTensor& expert_map, int64_t num_experts, bool by_global,
              int64_t tile_pairs, const Tensor& counts, const Tensor& totals) const;
    void starts(const Tensor& totals, int64_t multiple, const Tensor& starts, const OptionalTensor& sizes1,
                const OptionalTensor& sizes2, int64_t intermediate, int64_t hidden) const;
    void place(const Tensor& ids, const OptionalTensor& expert_map, int64_t num_experts, bool by_global,
               int64_t tile_pairs, int64_t multiple, const Tensor& counts, const Tensor& totals,
               const OptionalTensor& starts, const OptionalTensor& position_of_pair,
               const OptionalTensor& pair_at) const;
    void blocks(const Tensor& ids, const OptionalTensor& expert_map, int64_t num_experts, const Tensor& starts,
                int64_t block_size, const Tensor& pair_at, const Tensor& expert_of_block,
                const Tensor& num_post_padded) const;
    void scatter_rows(const Tensor& x, const Tensor& position_of_pair, const Tensor& out) const;
    void gather_rows(const Tensor& x, const Tensor& row_map, const Tensor& out) const;
    void sum_rows(const Tensor& rows, const Tensor& weights, const Tensor& index, const Tensor& out) const;

private:
    template <typename F>
    void load(const char* name, F& function) {
        function = reinterpret_cast<F>(dlsym(library_, name));
        TORCH_CHECK(function != nullptr, "the kernel library has no ", name);
    }

    void* library_;
    decltype(&moecheck_gate) gate_;
    decltype(&moecheck_plan) plan_;
    decltype(&moecheck_starts) starts_;
    decltype(&moecheck_place) place_;
    decltype(&moecheck_blocks) blocks_;
    decltype(&moecheck_scatter_rows) scatter_rows_;
    decltype(&moecheck_gather_rows) gather_rows_;
    decltype(&moecheck_sum_rows) sum_rows_;
};

void check(cudaError_t error, const char* what) {
    TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

// A contiguous array of a type on `device`.
template <typename T>
T* array(const Tensor& tensor, const Tensor& beside, const char* name) {
    constexpr auto type = std::is_same_v<T, float> ? at::kFloat : at::kInt;
    TORCH_CHECK(tensor.device() == beside.device(), name, " is on ", tensor.device(), ", not on ", beside.device());
    TORCH_CHECK(tensor.scalar_type() == type && tensor.is_contiguous(), name, " must be contiguous ", type);
    return tensor.data_ptr<T>();
}

template <typename T>
T* array(const OptionalTensor& tensor, const Tensor& beside, const char* name) {
    return tensor.has_value() ? array<T>(*tensor, beside, name) : nullptr;
}

// Rows of elements that lie side by side, at any distance from each other.
void check_rows(const Tensor& x, const char* name) {
    TORCH_CHECK(x.is_cuda() && x.dim() == 2, name, " must be a matrix on a CUDA device");
    TORCH_CHECK(x.size(1) <= 1 || x.stride(1) == 1, "the elements of a row of ", name, " must lie side by side");
}

int32_t dtype_of(const Tensor& x, const char* name) {
    switch (x.scalar_type()) {
        case at::kFloat: return MOECHECK_FP32;
        case at::kHalf: return MOECHECK_FP16;
        case at::kBFloat16: return MOECHECK_BF16;
        default: TORCH_CHECK(false, name, " must be float32, float16 or bfloat16, not ", x.scalar_type());
    }
}

MoecheckPairs pairs_of(const Tensor& ids, const OptionalTensor& map, int64_t num_experts, int64_t buckets, bool global) {
    TORCH_CHECK(ids.is_cuda(), "topk_ids must be on a CUDA device");
    TORCH_CHECK(!map.has_value() || map->numel() == num_experts, "expert_map must have num_experts entries");
    MoecheckPairs pairs{};
    pairs.ids = array<int32_t>(ids, ids, "topk_ids");
    pairs.expert_map = array<int32_t>(map, ids, "expert_map");
    pairs.num_pairs = ids.numel();
    pairs.num_experts = static_cast<int32_t>(num_experts);
    pairs.num_buckets = static_cast<int32_t>(buckets);
    pairs.by_global = global;
    return pairs;
}

void Kernels::gate(const Tensor& logits, const OptionalTensor& logit_bias, const OptionalTensor& choice_bias,
                   const OptionalTensor& expert_scale, const Tensor& weights, const Tensor& ids,
                   py::dict options) const {
    check_rows(logits, "router_logits");
    MoecheckGate call{};
    call.logits = logits.data_ptr();
    call.logit_bias = array<float>(logit_bias, logits, "correction_bias");
    call.choice_bias = array<float>(choice_bias, logits, "correction_bias");
    call.expert_scale = array<float>(expert_scale, logits, "per_expert_scale");
    call.weights = array<float>(weights, logits, "topk_weights");
    call.ids = array<int32_t>(ids, logits, "topk_ids");
    call.stride = logits.stride(0);
    call.num_tokens = logits.size(0);
    call.dtype = dtype_of(logits, "router_logits");
    call.num_experts = static_cast<int32_t>(logits.size(1));
    for (const auto& vector : {logit_bias, choice_bias, expert_scale}) {
        TORCH_CHECK(!vector.has_value() || vector->numel() == logits.size(1), "a vector must have num_experts entries");
    }
    const auto integer = [&](const char* name) { return options[name].cast<int32_t>(); };
    const auto number = [&](const char* name) { return options[name].cast<float>(); };
    call.top_k = integer("top_k");
    call.num_groups = integer("num_groups");
    call.topk_groups = integer("topk_groups");
    call.num_shared = integer("num_shared");
    call.scoring = integer("scoring");
    call.eps_rule = integer("eps_rule");
    call.by_logits = integer("by_logits");
    call.over_selected = integer("over_selected");
    call.top2_sum = integer("top2_sum");
    call.mask_zero = integer("mask_zero");
    call.renormalize = integer("renormalize");
    call.softcap = number("softcap");
    call.norm = number("norm");
    call.eps = number("eps");
    call.factor = number("factor");
    call.shared_weight = number("shared_weight");
    const int64_t slots = call.num_tokens * (call.top_k + call.num_shared);
    TORCH_CHECK(weights.numel() == slots && ids.numel() == slots, "outputs must have tokens x slots entries");
    const c10::cuda::CUDAGuard guard(logits.device());
    check(gate_(&call, stream()), "moecheck_gate");
}

void Kernels::plan(const Tensor& ids, const OptionalTensor& expert_map, int64_t num_experts, bool by_global,
                   int64_t tile_pairs, const Tensor& counts, const Tensor& totals) const {
    TORCH_CHECK(counts.dim() == 2 && counts.size(0) * tile_pairs >= ids.numel(), "counts must have a row for each tile");
    TORCH_CHECK(totals.numel() == counts.size(1), "totals must have an entry for each bucket");
    const MoecheckPairs pairs = pairs_of(ids, expert_map, num_experts, counts.size(1), by_global);
    const c10::cuda::CUDAGuard guard(ids.device());
    check(plan_(&pairs, tile_pairs, counts.size(0), array<int32_t>(counts, ids, "counts"),
                array<int32_t>(totals, ids, "totals"), stream()),
          "moecheck_plan");
}

void Kernels::starts(const Tensor& totals, int64_t multiple, const Tensor& starts, const OptionalTensor& sizes1,
                     const OptionalTensor& sizes2, int64_t intermediate, int64_t hidden) const {
    const int64_t buckets = totals.numel();
    TORCH_CHECK(starts.numel() == buckets + 1, "starts must have an entry more than totals");
    TORCH_CHECK(sizes1.has_value() == sizes2.has_value(), "sizes1 and sizes2 belong together");
    TORCH_CHECK(!sizes1.has_value() || (sizes1->numel() == 3 * buckets && sizes2->numel() == 3 * buckets),
                "sizes must have three entries for each bucket");
    const c10::cuda::CUDAGuard guard(totals.device());
    check(starts_(array<int32_t>(totals, totals, "totals"), static_cast<int32_t>(buckets),
                  static_cast<int32_t>(multiple), array<int32_t>(starts, totals, "starts"),
                  array<int32_t>(sizes1, totals, "sizes1"), array<int32_t>(sizes2, totals, "sizes2"),
                  static_cast<int32_t>(intermediate), static_cast<int32_t>(hidden), stream()),
          "moecheck_starts");
}

void Kernels::place(const Tensor& ids, const OptionalTensor& expert_map, int64_t num_experts, bool by_global,
                    int64_t tile_pairs, int64_t multiple, const Tensor& counts, const Tensor& totals,
                    const OptionalTensor& starts, const OptionalTensor& position_of_pair,
                    const OptionalTensor& pair_at) const {
    TORCH_CHECK(counts.dim() == 2 && counts.size(0) * tile_pairs >= ids.numel(), "counts must have a row for each tile");
    TORCH_CHECK(totals.numel() == counts.size(1), "totals must have an entry for each bucket");
    TORCH_CHECK(!starts.has_value() || starts->numel() == counts.size(1) + 1, "starts must have an entry more");
    TORCH_CHECK(!position_of_pair.has_value() || position_of_pair->numel() == ids.numel(), "one position for each pair");
    const MoecheckPairs pairs = pairs_of(ids, expert_map, num_experts, counts.size(1), by_global);
    const c10::cuda::CUDAGuard guard(ids.device());
    check(place_(&pairs, tile_pairs, counts.size(0), static_cast<int32_t>(multiple),
                 array<int32_t>(counts, ids, "counts"), array<int32_t>(totals, ids, "totals"),
                 array<int32_t>(starts, ids, "starts"), array<int32_t>(position_of_pair, ids, "position_of_pair"),
                 array<int32_t>(pair_at, ids, "pair_at"), stream()),
          "moecheck_place");
}

void Kernels::blocks(const Tensor& ids, const OptionalTensor& expert_map, int64_t num_experts, const Tensor& starts,
                     int64_t block_size, const Tensor& pair_at, const Tensor& expert_of_block,
                     const Tensor& num_post_padded) const {
    TORCH_CHECK(expert_of_block.numel() * block_size >= pair_at.numel(), "one expert for each block");
    const MoecheckPairs pairs = pairs_of(ids, expert_map, num_experts, starts.numel() - 1, true);
    const c10::cuda::CUDAGuard guard(ids.device());
    check(blocks_(&pairs, array<int32_t>(starts, ids, "starts"), pair_at.numel(), static_cast<int32_t>(block_size),
                  array<int32_t>(pair_at, ids, "pair_at"), array<int32_t>(expert_of_block, ids, "expert_of_block"),
                  array<int32_t>(num_post_padded, ids, "num_post_padded"), stream()),
          "moecheck_blocks");
}

void Kernels::scatter_rows(const Tensor& x, const Tensor& position_of_pair, const Tensor& out) const {
    check_rows(x, "x");
    TORCH_CHECK(position_of_pair.dim() == 2 && position_of_pair.size(0) == x.size(0), "positions must be [tokens, slots]");
    TORCH_CHECK(out.is_contiguous() && out.scalar_type() == x.scalar_type() && out.dim() == 2 && out.size(1) == x.size(1),
                "out must be contiguous and as x");
    TORCH_CHECK(out.size(0) >= position_of_pair.numel(), "out must have a row for each pair");
    const int64_t size = x.element_size();
    const c10::cuda::CUDAGuard guard(x.device());
    check(scatter_rows_(x.data_ptr(), x.stride(0) * size, x.size(0), x.size(1) * size,
                        array<int32_t>(position_of_pair, x, "positions"), static_cast<int32_t>(position_of_pair.size(1)),
                        out.data_ptr(), stream()),
          "moecheck_scatter_rows");
}

void Kernels::gather_rows(const Tensor& x, const Tensor& row_map, const Tensor& out) const {
    check_rows(x, "x");
    TORCH_CHECK(out.is_contiguous() && out.scalar_type() == x.scalar_type() && out.dim() == 2 && out.size(1) == x.size(1),
                "out must be contiguous and as x");
    TORCH_CHECK(out.size(0) == row_map.numel(), "out must have a row for each entry of row_map");
    const int64_t size = x.element_size();
    const c10::cuda::CUDAGuard guard(x.device());
    check(gather_rows_(x.data_ptr(), x.stride(0) * size, x.size(0), x.size(1) * size,
                       array<int32_t>(row_map, x, "row_map"), row_map.numel(), out.data_ptr(), stream()),
          "moecheck_gather_rows");
}

void Kernels::sum_rows(const Tensor& rows, const Tensor& weights, const Tensor& index, const Tensor& out) const {
    check_rows(rows, "rows");
    TORCH_CHECK(index.dim() == 2 && weights.sizes() == index.sizes(), "weights and index must have the same shape");
    TORCH_CHECK(out.is_contiguous() && out.scalar_type() == rows.scalar_type() && out.dim() == 2 &&
                    out.size(0) == index.size(0) && out.size(1) == rows.size(1),
                "out must be contiguous [tokens, width]");
    const c10::cuda::CUDAGuard guard(rows.device());
    check(sum_rows_(rows.data_ptr(), dtype_of(rows, "rows"), rows.stride(0), rows.size(0), rows.size(1),
                    array<float>(weights, rows, "weights"), array<int32_t>(index, rows, "index"), index.size(0),
                    static_cast<int32_t>(index.size(1)), out.data_ptr(), stream()),
          "moecheck_sum_rows");
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    py::class_<Kernels>(m, "Kernels", py::module_local())
        .def(py::init<const std::string&>())
        .def("gate", &Kernels::gate)
        .def("plan", &Kernels::plan)
        .def("starts", &Kernels::starts)
        .def("place", &Kernels::place)
        .def("blocks", &Kernels::blocks)
        .def("scatter_rows", &Kernels::scatter_rows)
        .def("gather_rows", &Kernels::gather_rows)
        .def("sum_rows", &Kernels::sum_rows);
}

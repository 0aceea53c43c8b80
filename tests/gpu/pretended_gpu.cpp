// A pretended NVIDIA GPU for CPU builds of torch: tensors say cuda:0 or cuda:1 and lie in host memory, every operation
// that a real GPU would run goes through one boxed function, which checks devices, counts, and calls the CPU's kernel.
// What is asynchronous on a GPU and is seen by the host, a copy into pinned memory, happens when it is waited for.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/core/List.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>
#include <atomic>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <vector>

using at::Tensor;
using c10::Device;
using c10::DeviceType;

namespace {
constexpr int N_DEVICES = 2;
thread_local c10::DeviceIndex current = 0;

// ---- accounts
struct Account { int64_t calls = 0, bytes = 0, flops = 0; };
std::recursive_mutex lock;  // what has landed may free pinned memory, which is counted too
std::map<std::string, Account> accounts;  // by operation
std::map<std::string, int64_t> syncs;     // by reason
std::atomic<int64_t> held{0}, peak{0}, reserved{0};
std::atomic<int64_t> capacity{80LL << 30};  // of both devices together
bool is_strict = true;

void raise_to(std::atomic<int64_t>& most, int64_t now) {
  int64_t before = most.load();
  while (now > before && !most.compare_exchange_weak(before, now)) {}
}
void add_held(int64_t n) {
  int64_t now = held += n;
  if (now > capacity) {
    held -= n;
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", n, " bytes");
  }
  raise_to(peak, now);
  raise_to(reserved, now);  // the allocator keeps what was freed
}

// ---- pinned memory and copies under way
std::map<const void*, size_t> pinned;
bool is_pinned(const void* p) {
  std::lock_guard<std::recursive_mutex> g(lock);
  auto it = pinned.upper_bound(p);
  if (it == pinned.begin()) return false;
  --it;
  return (const char*)p < (const char*)it->first + it->second;
}
struct Pending { c10::DeviceIndex device; int64_t number; Tensor destination, value; };
std::deque<Pending> under_way;
int64_t number = 0;
void land(int device, int64_t upto) {
  std::lock_guard<std::recursive_mutex> g(lock);
  std::deque<Pending> left;
  for (auto& p : under_way) {
    if ((device < 0 || p.device == device) && p.number <= upto) {
      c10::impl::ExcludeDispatchKeyGuard x(c10::autograd_dispatch_keyset_with_ADInplaceOrView);
      c10::impl::ExcludeDispatchKeyGuard y(c10::DispatchKey::Python);
      p.destination.copy_(p.value);
    } else left.push_back(p);
  }
  under_way.swap(left);
}
void count_sync(const std::string& why, int device = -1) {
  { std::lock_guard<std::recursive_mutex> g(lock); syncs[why]++; }
  land(device, INT64_MAX);
}
struct PinnedAllocator final : public c10::Allocator {
  static void release(void* p) {
    { std::lock_guard<std::recursive_mutex> g(lock); pinned.erase(p); }
    free(p);
  }
  c10::DataPtr allocate(size_t n) override {
    void* p = malloc(n ? n : 1);
    { std::lock_guard<std::recursive_mutex> g(lock); pinned[p] = n; accounts["(host) cudaHostAlloc or its cache"].calls++; }
    return {p, p, &release, Device(DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* d, const void* s, size_t n) const override { memcpy(d, s, n); }
} pinned_allocator;

// ---- guard and hooks
struct Guard final : public c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device d) const override { auto o = current; if (d.index() >= 0) current = d.index(); return Device(DeviceType::CUDA, o); }
  Device getDevice() const override { return Device(DeviceType::CUDA, current); }
  void setDevice(Device d) const override { if (d.index() >= 0) current = d.index(); }
  void uncheckedSetDevice(Device d) const noexcept override { if (d.index() >= 0) current = d.index(); }
  c10::Stream getStream(Device d) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, Device(DeviceType::CUDA, d.index() < 0 ? current : d.index())); }
  c10::Stream getDefaultStream(Device d) const override { return getStream(d); }
  c10::Stream getNewStream(Device d, int) const override { return getStream(d); }
  c10::Stream getStreamFromGlobalPool(Device d, bool) const override { return getStream(d); }
  c10::Stream exchangeStream(c10::Stream s) const noexcept override { return s; }
  c10::DeviceIndex deviceCount() const noexcept override { return N_DEVICES; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
} guard;

struct Hooks final : public at::CUDAHooksInterface {
  Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return N_DEVICES; }
  int getNumGPUs() const override { return N_DEVICES; }
  c10::DeviceIndex current_device() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex d) const override { current = d; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex d) const override { auto o = current; if (d >= 0) current = d; return o; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex d) const override { auto o = current; if (d >= 0) current = d; return o; }
  bool isPinnedPtr(const void* p) const override { return is_pinned(p); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  void deviceSynchronize(c10::DeviceIndex d) const override { count_sync("cudaDeviceSynchronize", d); }
};

// ---- tensors
Tensor flagged(Tensor out, const Tensor& like) {
  out._set_conj(like.is_conj());
  out._set_neg(like.is_neg());
  return out;
}
Tensor host_alias(const Tensor& t) {
  c10::Storage s(c10::Storage::use_byte_size_t(), t.storage().nbytes(),
                 c10::DataPtr(t.storage().mutable_data(), Device(DeviceType::CPU)), c10::GetCPUAllocator(), true);
  auto out = at::detail::make_tensor<c10::TensorImpl>(std::move(s), c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  return flagged(out, t);
}
struct Kept { c10::Storage storage; int64_t n; };
c10::DataPtr keep(const c10::Storage& storage, Device device) {
  int64_t n = (storage.nbytes() + 511) / 512 * 512;  // as the caching allocator rounds
  add_held(n);
  return c10::DataPtr(storage.mutable_data(), new Kept{storage, n},
                      [](void* c) { auto* k = (Kept*)c; held -= k->n; delete k; }, device);
}
Tensor wrap(const Tensor& cpu, Device device) {
  c10::Storage s(c10::Storage::use_byte_size_t(), cpu.storage().nbytes(), keep(cpu.storage(), device), c10::GetCPUAllocator(), true);
  auto out = at::detail::make_tensor<c10::TensorImpl>(std::move(s), c10::DispatchKeySet(c10::DispatchKey::CUDA), cpu.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
  return flagged(out, cpu);
}
Tensor view_of(const Tensor& original, const Tensor& cpu) {
  auto out = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(original.storage()), c10::DispatchKeySet(c10::DispatchKey::CUDA), cpu.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
  return flagged(out, cpu);
}

// ---- what a real GPU would refuse or wait for
// The documentation of torch.use_deterministic_algorithms has the list; kthvalue and MaxPool3d are no longer in it.
const char* NOT_DETERMINISTIC[] = {
    "aten::_adaptive_avg_pool2d_backward", "aten::_adaptive_avg_pool3d_backward", "aten::adaptive_max_pool2d_backward",
    "aten::avg_pool3d_backward", "aten::fractional_max_pool2d_backward", "aten::fractional_max_pool3d_backward",
    "aten::max_unpool2d", "aten::max_unpool3d", "aten::upsample_linear1d_backward", "aten::upsample_bilinear2d_backward",
    "aten::upsample_trilinear3d_backward", "aten::upsample_bicubic2d_backward", "aten::reflection_pad1d_backward",
    "aten::reflection_pad2d_backward", "aten::reflection_pad3d_backward", "aten::replication_pad1d_backward",
    "aten::replication_pad2d_backward", "aten::replication_pad3d_backward", "aten::cumsum", "aten::median.dim",
    "aten::nanmedian.dim", "aten::put_", "aten::histc", "aten::bincount", "aten::grid_sampler_2d_backward",
    "aten::grid_sampler_3d_backward", "aten::_ctc_loss_backward", "aten::_embedding_bag_backward",
    "aten::nll_loss2d_forward", "aten::scatter_reduce.two"};
// Of these only some calls: running sums of floats, counts with weights, products, and the largest of a bag.
bool is_deterministic_all_the_same(const std::string& name, const std::vector<c10::IValue>& given) {
  if (name.rfind("aten::cumsum", 0) == 0) return !(given[0].toTensor().is_floating_point() || given[0].toTensor().is_complex());
  if (name == "aten::bincount") return given[1].isNone() || !given[1].toTensor().defined();
  if (name.rfind("aten::scatter_reduce", 0) == 0) return given[4].toStringRef() != "prod";
  if (name == "aten::_embedding_bag_backward") return given[8].toInt() != 2;
  return false;
}
bool starts(const std::string& s, const char* p) { return s.rfind(p, 0) == 0; }

bool is_free(const std::string& name) {  // no kernel: views, allocation
  static const char* names[] = {"aten::empty", "aten::as_strided", "aten::view", "aten::_reshape_alias", "aten::detach",
      "aten::alias", "aten::set_", "aten::resize_", "aten::expand", "aten::permute", "aten::select.", "aten::slice.",
      "aten::transpose", "aten::unsqueeze", "aten::squeeze", "aten::t", "aten::unfold", "aten::split", "aten::diagonal",
      "aten::_unsafe_view", "aten::_conj", "aten::is_", "aten::record_stream", "aten::_has_", "aten::unbind"};
  for (auto* n : names) if (starts(name, n)) {
    std::string rest = name.substr(strlen(n));
    if (std::string(n) == "aten::t") return rest.empty() || rest == "_";
    return rest.find("backward") == std::string::npos;
  }
  return false;
}

int64_t bytes_of(const Tensor& t) { return t.defined() ? t.numel() * t.element_size() : 0; }
int64_t dense_bytes(const Tensor& t) {  // an expanded operand is read once
  int64_t n = t.element_size();
  for (int64_t d = 0; d < t.dim(); d++) if (t.stride(d) != 0) n *= t.size(d);
  return n;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  std::string name = schema.name() + (schema.overload_name().empty() ? "" : "." + schema.overload_name());
  const size_t n_args = schema.arguments().size(), begin = stack->size() - n_args;
  std::vector<std::pair<Tensor, Tensor>> pairs;  // original, alias
  std::vector<size_t> write_args;
  Device device(DeviceType::CUDA, current);
  bool found = false;
  int64_t bytes = 0, n_cpu = 0;
  const bool is_copy = starts(name, "aten::copy_") || starts(name, "aten::_to_copy") || starts(name, "aten::_copy_from");
  auto take = [&](const Tensor& t) -> Tensor {
    if (!t.defined()) return t;
    bytes += dense_bytes(t);
    if (!t.is_cuda()) { if (t.dim() > 0) n_cpu++; return t; }
    if (found && t.device() != device && !is_copy) TORCH_CHECK(false, "Expected all tensors to be on the same device, but ", name, " got ", device, " and ", t.device());
    device = t.device(); found = true;
    for (auto& p : pairs) if (p.first.is_same(t)) return p.second;
    Tensor alias = host_alias(t);
    const bool reads = !is_free(name) && !is_copy && name.back() != '_' && name.find("_.") == std::string::npos;
    if (reads && (t.is_conj() || t.is_neg())) return alias.resolve_conj().resolve_neg();
    pairs.emplace_back(t, alias);
    return pairs.back().second;
  };
  const bool lets_cpu_index = starts(name, "aten::index") || starts(name, "aten::_index_put_impl_");
  std::vector<c10::IValue> originals(stack->begin() + begin, stack->end());
  for (size_t i = 0; i < n_args; i++) {
    auto& v = (*stack)[begin + i];
    if (v.isTensor()) v = take(v.toTensor());
    else if (v.isTensorList()) { std::vector<Tensor> l; for (const Tensor& t : v.toTensorVector()) l.push_back(take(t)); v = c10::List<Tensor>(l); }
    else if (v.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> l;
      for (const auto& t : v.toOptionalTensorVector()) l.push_back(t.has_value() ? std::optional<Tensor>(take(*t)) : t);
      v = l;
    } else if (v.isDevice() && v.toDevice().is_cuda()) {
      auto d = v.toDevice();
      device = Device(DeviceType::CUDA, d.has_index() ? d.index() : current); found = true;
      v = Device(DeviceType::CPU);
    }
  }
  if (n_cpu && found && !is_copy && !lets_cpu_index && is_strict)
    TORCH_CHECK(false, "Expected all tensors to be on the same device, but ", name, " got a tensor on cpu and one on ", device);
  if (at::globalContext().deterministicAlgorithms() && !is_deterministic_all_the_same(name, originals))
    for (auto* n : NOT_DETERMINISTIC)
      if (starts(name, n) && (name.size() == strlen(n) || name[strlen(n)] == '.' || name[strlen(n)] == '_'))
        TORCH_CHECK(false, name.substr(6), "_cuda does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(True)'");
  // synchronisation
  if (starts(name, "aten::_local_scalar_dense")) count_sync("item", device.index());
  else if (starts(name, "aten::nonzero") || starts(name, "aten::masked_select") || starts(name, "aten::_unique") || starts(name, "aten::unique") || starts(name, "aten::equal") || starts(name, "aten::bincount") || starts(name, "aten::histc")) count_sync(name, device.index());
  else if (name == "aten::repeat_interleave.Tensor" && originals.back().isNone()) count_sync(name, device.index());
  else if (lets_cpu_index) for (auto& v : originals) if (v.isOptionalTensorList())
    for (const auto& t : v.toOptionalTensorVector()) if (t.has_value() && t->defined()) {
      if (t->scalar_type() == at::kBool || t->scalar_type() == at::kByte) count_sync("index by a mask", device.index());
      else if (!t->is_cuda()) count_sync("index from the CPU", device.index());
    }
  if (is_copy && starts(name, "aten::copy_")) {
    const Tensor& dst = originals[0].toTensor(); const Tensor& src = originals[1].toTensor();
    const bool non_blocking = originals[2].toBool();
    if (dst.is_cuda() != src.is_cuda()) {
      const bool down = src.is_cuda(), pin = is_pinned(down ? dst.const_data_ptr() : src.const_data_ptr());
      const char* way = down ? "copy to host" : "copy to device";
      if (!non_blocking) count_sync(std::string(way) + ", blocking" + (pin ? "" : ", pageable"), device.index());
      else if (!pin && dst.numel() > 0) count_sync(std::string(way) + ", non_blocking but pageable", device.index());
      { std::lock_guard<std::recursive_mutex> g(lock); auto& a = accounts[std::string("(transfer) ") + way]; a.calls++; a.bytes += bytes_of(dst); }
      if (down && non_blocking && pin) {
        Tensor value = at::empty_like(pairs[0].second); value.copy_(pairs[0].second);
        memset(dst.mutable_data_ptr(), 0xFF, bytes_of(dst));  // NaN until it has landed
        std::lock_guard<std::recursive_mutex> g(lock);
        under_way.push_back({src.device().index(), ++number, dst, value});
        stack->resize(begin); stack->push_back(dst);
        return;
      }
    }
  }
  // the CPU's kernel
  {
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  for (auto& p : pairs) {  // resized by the kernel
    auto *o = p.first.unsafeGetTensorImpl(); auto& a = p.second;
    if (a.storage().data() != p.first.storage().data() || a.storage().nbytes() != p.first.storage().nbytes()) {
      c10::Storage s = p.first.storage();
      auto ptr = keep(a.storage(), p.first.device());
      s.set_data_ptr_noswap(std::move(ptr)); s.set_nbytes(a.storage().nbytes());
    }
    if (a.sizes() != p.first.sizes() || a.strides() != p.first.strides() || a.storage_offset() != p.first.storage_offset())
      if (!is_copy) o->set_sizes_and_strides(a.sizes(), a.strides(), a.storage_offset());
  }
  const size_t n_out = schema.returns().size(), first = stack->size() - n_out;
  auto give = [&](const Tensor& t) -> Tensor {
    if (!t.defined()) return t;
    for (auto& p : pairs) if (p.second.is_same(t)) return p.first;
    for (auto& p : pairs) if (p.second.storage().unsafeGetStorageImpl() == t.storage().unsafeGetStorageImpl()) return view_of(p.first, t);
    if (!found) return t;
    bytes += bytes_of(t);
    return wrap(t, device);
  };
  for (size_t i = 0; i < n_out; i++) {
    auto& v = (*stack)[first + i];
    const auto& info = schema.returns()[i].alias_info();
    if (v.isTensor() && info && info->isWrite()) {
      for (size_t k = 0; k < n_args; k++) {
        const auto& in = schema.arguments()[k].alias_info();
        if (in && in->isWrite() && in->beforeSet() == info->beforeSet() && originals[k].isTensor()) { v = originals[k]; break; }
      }
    } else if (v.isTensor()) v = give(v.toTensor());
    else if (v.isTensorList()) { std::vector<Tensor> l; for (const Tensor& t : v.toTensorVector()) l.push_back(give(t)); v = c10::List<Tensor>(l); }
  }
  if (!is_free(name)) {
    std::lock_guard<std::recursive_mutex> g(lock);
    auto& a = accounts[name]; a.calls++; a.bytes += bytes;
    if (starts(name, "aten::convolution") && !starts(name, "aten::convolution_backward")) {
      const Tensor& w = originals[1].toTensor();
      a.flops += 2 * (*stack)[first].toTensor().numel() * (w.numel() / w.size(0));
    } else if (starts(name, "aten::convolution_backward")) {
      const Tensor& w = originals[2].toTensor();
      a.flops += 2 * originals[0].toTensor().numel() * (w.numel() / w.size(0));
    } else if (starts(name, "aten::addmm") || starts(name, "aten::mm") || starts(name, "aten::bmm") || starts(name, "aten::baddbmm")) {
      size_t k = starts(name, "aten::addmm") || starts(name, "aten::baddbmm") ? 1 : 0;
      const Tensor& l = originals[k].toTensor(); const Tensor& r = originals[k + 1].toTensor();
      a.flops += 2 * l.numel() * r.size(-1);
    }
  }
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell_fused(const Tensor& gi, const Tensor& gh, const Tensor& c, const std::optional<Tensor>& bi, const std::optional<Tensor>& bh) {
  auto go = [](const Tensor& t) { return t.is_cuda() ? host_alias(t) : t; };
  Tensor g = go(gi) + go(gh);
  if (bi && bi->defined()) g = g + go(*bi) + go(*bh);
  auto p = g.chunk(4, 1);
  Tensor i = p[0].sigmoid(), f = p[1].sigmoid(), n = p[2].tanh(), o = p[3].sigmoid();
  Tensor cy = f * go(c) + i * n, hy = o * cy.tanh();
  { std::lock_guard<std::recursive_mutex> l(lock); auto& a = accounts["aten::_thnn_fused_lstm_cell"]; a.calls++; a.bytes += bytes_of(g) * 3 + bytes_of(cy) * 3; }
  return {wrap(hy, gi.device()), wrap(cy, gi.device()), wrap(at::cat({i, f, n, o}, 1), gi.device())};
}
std::tuple<Tensor, Tensor> gru_cell_fused(const Tensor& gi, const Tensor& gh, const Tensor& h, const std::optional<Tensor>& bi, const std::optional<Tensor>& bh) {
  auto go = [](const Tensor& t) { return t.is_cuda() ? host_alias(t) : t; };
  Tensor a = go(gi), b = go(gh);
  if (bi && bi->defined()) { a = a + go(*bi); b = b + go(*bh); }
  auto p = a.chunk(3, 1), q = b.chunk(3, 1);
  Tensor r = (p[0] + q[0]).sigmoid(), z = (p[1] + q[1]).sigmoid(), n = (p[2] + r * q[2]).tanh();
  Tensor hy = n + z * (go(h) - n);
  { std::lock_guard<std::recursive_mutex> l(lock); auto& c = accounts["aten::_thnn_fused_gru_cell"]; c.calls++; c.bytes += bytes_of(a) * 3 + bytes_of(hy) * 2; }
  return {wrap(hy.contiguous(), gi.device()), wrap(at::cat({r, z, n, go(h), q[2]}, 1), gi.device())};
}
}  // namespace

namespace at { C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks) }
TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  for (auto* n : {"copy_", "convolution", "convolution_backward", "native_layer_norm", "native_group_norm", "native_batch_norm"})
    m.impl(n, torch::CppFunction::makeFromBoxedFunction<&fallback>());
  m.impl("_thnn_fused_lstm_cell", lstm_cell_fused);
  m.impl("_thnn_fused_gru_cell", gru_cell_fused);
}

extern "C" {
// Another operation whose composite kernel must not run by itself.
void fake_intercept(const char* n) {
  static std::deque<torch::Library> libraries;
  libraries.emplace_back(torch::Library::IMPL, "aten", std::make_optional(c10::DispatchKey::CUDA), __FILE__, __LINE__);
  libraries.back().impl(n, torch::CppFunction::makeFromBoxedFunction<&fallback>());
}
void fake_start() { c10::impl::device_guard_impl_registry[(size_t)DeviceType::CUDA].store(&guard); }
void fake_reset() { std::lock_guard<std::recursive_mutex> g(lock); accounts.clear(); syncs.clear(); peak = held.load(); }
int64_t fake_held() { return held; }
int64_t fake_peak() { return peak; }
int64_t fake_reserved() { return reserved; }
int64_t fake_capacity() { return capacity; }
void fake_set_capacity(int64_t n) { capacity = n; }
void fake_empty_cache() { reserved = held.load(); }
int64_t fake_number() { return number; }
void fake_land(int device, int64_t upto) { land(device, upto); }
void fake_sync(int device) { count_sync("torch.cuda.synchronize", device); }
int fake_device() { return current; }
void fake_set_device(int d) { current = d; }
static std::string text;
const char* fake_report() {
  std::lock_guard<std::recursive_mutex> g(lock);
  text.clear();
  for (auto& a : accounts) text += "op\t" + a.first + "\t" + std::to_string(a.second.calls) + "\t" + std::to_string(a.second.bytes) + "\t" + std::to_string(a.second.flops) + "\n";
  for (auto& s : syncs) text += "sync\t" + s.first + "\t" + std::to_string(s.second) + "\n";
  return text.c_str();
}
}

// Quantizes the linear weights of a real model and shows what that costs. See --help.

#include <cstdio>
#include <map>
#include <memory>

#include "checkpoint.hpp"
#include "error.hpp"
#include "filter.hpp"
#include "library.hpp"
#include "options.hpp"
#include "progress.hpp"
#include "quantizer.hpp"
#include "selection.hpp"
#include "table.hpp"
#include "writer.hpp"

namespace {

using Quantizers = std::vector<std::unique_ptr<Quantizer>>;

std::vector<const Tensor *> select(const Checkpoint &checkpoint, const Options &options) {
    const Filter filter(options.filter);
    std::vector<const Tensor *> selected;
    for (const Tensor &tensor : checkpoint.tensors()) {
        if (is_linear_weight(*tensor.info) && filter.matches(tensor.info->name)) selected.push_back(&tensor);
    }
    if (selected.empty()) {
        throw Error(options.model + ": no linear weight" + (options.filter.empty() ? "" : " matches --filter") +
                    " among " + std::to_string(checkpoint.tensors().size()) + " tensors");
    }
    return selected;
}

// Activations of one width are made once.
class Activations {
public:
    explicit Activations(std::int64_t rows) : rows_(rows) {}

    const std::vector<float> &of_width(std::int64_t columns) {
        std::vector<float> &values = values_[columns];
        if (values.empty()) values = random_activations(rows_, columns);
        return values;
    }

private:
    std::int64_t rows_;
    std::map<std::int64_t, std::vector<float>> values_;
};

Row measure(const std::string &name, const Weight &weight, const Quantizer &quantizer, Quantized &quantized,
            const std::vector<float> &x, const std::vector<float> &expected, std::int64_t rows) {
    Row row;
    row.tensor = name;
    row.rows = weight.rows;
    row.columns = weight.columns;
    row.recipe = recipe_name(quantizer.recipe());
    row.weight_error = quantizer.error(weight, quantized);
    row.linear_error = relative_error(quantizer.linear(weight, quantized, x, rows), expected);
    row.bytes = weight.bytes + quantized.codes.size() + quantized.scales.size() * sizeof(float);
    row.seconds = quantizer.time(weight, quantized);
    row.non_finite = quantized.health.non_finite;
    return row;
}

void measure_all(const std::vector<const Tensor *> &selected, const Quantizers &quantizers, const Options &options,
                 Table &table, Writer *writer) {
    Progress progress("quantizing", selected.size());
    Activations activations(options.rows);
    for (const Tensor *tensor : selected) {
        const std::string &name = tensor->info->name;
        progress.next(name);
        try {
            const AlignedWeight aligned(*tensor);
            const Weight &weight = aligned.view();
            const std::vector<float> &x = activations.of_width(weight.columns);
            const auto expected = reference_linear(weight, x, options.rows, quantizers.front()->threads());
            for (const auto &quantizer : quantizers) {
                Quantized quantized = quantizer->quantize(weight);
                table.add(measure(name, weight, *quantizer, quantized, x, expected, options.rows));
                if (writer != nullptr) writer->write(*tensor, quantized);
            }
        } catch (const Error &failure) {
            throw Error(options.model + ": tensor \"" + printable(name) + "\": " + failure.what());
        }
    }
}

Quantizers make_quantizers(const Library &library, const Options &options) {
    Quantizers result;
    for (const std::uint32_t recipe : options.recipes) {
        result.push_back(std::make_unique<Quantizer>(library, recipe, options.pow2, options.threads));
    }
    return result;
}

void print_inputs(const Library &library, const Options &options, const Checkpoint &checkpoint, std::uint32_t threads) {
    std::printf("library: %s (%s), %u threads\n", library.path.c_str(), library.build_info(), threads);
    std::printf("model:   %s, %zu tensors, %.1f MB\n", options.model.c_str(), checkpoint.tensors().size(),
                static_cast<double>(checkpoint.bytes()) / 1e6);
}

void run(const Options &options) {
    const Library library(options.library);
    const Checkpoint checkpoint(options.model);
    const auto selected = select(checkpoint, options);
    const Quantizers quantizers = make_quantizers(library, options);
    std::unique_ptr<Writer> writer;
    if (!options.out.empty()) {
        writer = std::make_unique<Writer>(checkpoint, selected, options.out, options.pow2);
    }
    print_inputs(library, options, checkpoint, quantizers.front()->threads());
    std::vector<std::string> names;
    for (const Tensor *tensor : selected) names.push_back(tensor->info->name);
    Table table(names);
    table.print_head();
    measure_all(selected, quantizers, options, table, writer.get());
    table.print_totals();
    std::printf("kept:  %zu tensors as they are\n", checkpoint.tensors().size() - selected.size());
    if (writer == nullptr) return;
    writer->finish(*quantizers.front());
    std::printf("wrote: %s, %zu tensors, %.1f MB, and %s; read back, every bit is as written\n", options.out.c_str(),
                writer->tensor_count(), static_cast<double>(writer->bytes()) / 1e6, writer->config_path().c_str());
}

}  // namespace

int main(int count, char **arguments) {
    const Options options = parse_options(count, arguments);
    try {
        run(options);
    } catch (const std::exception &failure) {
        std::fflush(stdout);
        std::fprintf(stderr, "quantize_model: %s\n", printable(failure.what(), 2000).c_str());
        return 1;
    }
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
        std::fprintf(stderr, "quantize_model: cannot write to standard output\n");
        return 1;
    }
    return 0;
}

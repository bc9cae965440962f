import { openCpu } from '@asa/backend-cpu';
import {
  type Backend,
  CheckpointError,
  ConfigError,
  initialParameters,
  loadModel,
  MemoryFolder,
  Model,
  type ModelConfig,
  type NamedTensor,
  places,
  preset,
  readConfig,
  saveModel,
  toFamily,
  writeConfig,
  writeText,
  writeWeights,
} from '@asa/core';
import { beforeEach, describe, expect, it } from 'vitest';

let backend: Backend;
let folder: MemoryFolder;
beforeEach(async () => {
  backend = await openCpu({ poison: true });
  folder = new MemoryFolder('models/test');
});

const llama = {
  model_type: 'llama',
  vocab_size: 16,
  hidden_size: 8,
  intermediate_size: 12,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  rms_norm_eps: 1e-5,
  tie_word_embeddings: true,
  eos_token_id: 2,
};
const deepseek = {
  ...llama,
  model_type: 'deepseek_v3',
  q_lora_rank: 6,
  kv_lora_rank: 4,
  qk_nope_head_dim: 4,
  qk_rope_head_dim: 2,
  v_head_dim: 3,
  n_routed_experts: 4,
  first_k_dense_replace: 1,
};

const config = (json: object) =>
  writeText(folder, 'config.json', JSON.stringify(json));

/** Weights of the folder's config, changed on the way. */
async function weights(
  change: (tensor: NamedTensor) => NamedTensor[] = (t) => [t],
): Promise<ModelConfig> {
  const { config: model, family } = await readConfig(folder);
  const shapes = new Map<string, number[]>();
  for (const { parameter, tensor, slice } of places(model, family)) {
    shapes.set(
      tensor,
      slice
        ? [slice.heads * slice.of, parameter.shape.at(-1) ?? 0]
        : [...parameter.shape],
    );
  }
  const tensors = [...shapes].map(([name, shape], index): NamedTensor => {
    const size = shape.reduce((n, extent) => n * extent, 1);
    const data = Float32Array.from({ length: size }, (_, i) => index + i / 100);
    return { name, shape, dtype: 'f32', data };
  });
  await writeWeights(folder, tensors.flatMap(change));
  return model;
}

describe('readConfig', () => {
  it('reads a Llama', async () => {
    await config({ ...llama, rope_theta: 5e5, bos_token_id: 1 });
    expect(await readConfig(folder)).toMatchObject({
      family: 'llama',
      config: {
        vocabularySize: 16,
        attention: {
          F: { kind: 'gqa', heads: 2, keyValueHeads: 1, headWidth: 4 },
        },
        rope: { theta: 5e5, style: 'half' },
        tieEmbeddings: true,
        bos: 1,
        eos: [2],
      },
    });
  });

  it('reads a window in Mistral only', async () => {
    await config({ ...llama, model_type: 'mistral', sliding_window: 7 });
    const mistral = await readConfig(folder);
    expect(mistral.config.attention.F).toMatchObject({ window: 7 });
    await config({ ...llama, sliding_window: 7 });
    const plain = await readConfig(folder);
    expect(plain.config.attention.F).not.toHaveProperty('window', 7);
  });

  it.each([
    [
      {
        rope_parameters: {
          rope_type: 'llama3',
          rope_theta: 1e4,
          factor: 8,
          low_freq_factor: 1,
          high_freq_factor: 4,
          original_max_position_embeddings: 8192,
        },
      },
      { kind: 'llama3', factor: 8 },
    ],
    [
      { rope_scaling: { type: 'linear', factor: 2 } },
      { kind: 'linear', factor: 2 },
    ],
  ])('reads stretched rotary positions %o', async (rope, scaling) => {
    await config({ ...llama, ...rope });
    expect((await readConfig(folder)).config.rope.scaling).toMatchObject(
      scaling,
    );
  });

  it.each([
    ['no JSON', '{', undefined, /not JSON/],
    ['no model type', '{}', 'model_type', /must be a string/],
    [
      'an unknown model type',
      { model_type: 'gpt2' },
      'model_type',
      /must be asa, llama, .* got "gpt2"/,
    ],
    [
      'experts',
      { ...deepseek, first_k_dense_replace: 0 },
      'first_k_dense_replace',
      /mixture-of-experts layers are not supported/,
    ],
    [
      'biases',
      { ...llama, attention_bias: true },
      'attention_bias',
      /only false is supported/,
    ],
    ['another activation', { ...llama, hidden_act: 'gelu' }, 'hidden_act', /./],
    [
      'yarn',
      { ...llama, rope_scaling: { rope_type: 'yarn', factor: 2 } },
      'rope_parameters.rope_type',
      /must be default, linear or llama3, got "yarn"/,
    ],
    [
      'a factor that is missing',
      { ...llama, rope_scaling: { type: 'linear' } },
      'rope_parameters.factor',
      /is missing/,
    ],
    [
      'heads that do not divide',
      { ...llama, num_key_value_heads: 3, num_attention_heads: 4 },
      'attention.F.keyValueHeads',
      /must divide heads/,
    ],
    [
      'a head width that is no integer',
      { ...llama, num_attention_heads: 3, num_key_value_heads: 3 },
      'attention.F.headWidth',
      /./,
    ],
    ['a negative size', { ...llama, hidden_size: -8 }, 'hidden_size', /./],
  ])('refuses %s', async (_, json, field, rule) => {
    const text = typeof json === 'string' ? json : JSON.stringify(json);
    await writeText(folder, 'config.json', text);
    const error = await readConfig(folder).catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(ConfigError);
    expect(error).toMatchObject({ path: 'models/test/config.json', field });
    expect((error as ConfigError).rule).toMatch(rule);
  });

  it('is a checkpoint error when the file is missing', async () => {
    await expect(readConfig(folder)).rejects.toThrow(CheckpointError);
  });

  it.each(['tiny-asa', 'tiny-nsa', 'tiny-full'])(
    'reads %s back as it was written',
    async (name) => {
      const model = preset(name, { bos: 1, eos: [2, 3] });
      await writeConfig(folder, model);
      expect(await readConfig(folder)).toEqual({
        config: model,
        family: 'asa',
      });
    },
  );

  it('writes the names that the ecosystem knows', async () => {
    const file = new MemoryFolder('m');
    await writeConfig(file, preset('tiny'));
    const opened = await file.open('config.json');
    const json = JSON.parse(
      new TextDecoder().decode(await opened.read(0, opened.size)),
    );
    expect(json).toMatchObject({
      model_type: 'asa',
      vocab_size: 2048,
      hidden_size: 128,
      num_hidden_layers: 4,
      max_position_embeddings: 2048,
      attention: { G: { kind: 'gla', latent_width: expect.any(Number) } },
    });
  });
});

describe('loadModel', () => {
  it('gives back the bits that saveModel wrote, in shards too', async () => {
    const model = new Model(
      backend,
      preset('tiny', { layers: 2 }),
      await initialParameters(backend, preset('tiny', { layers: 2 }), {
        seed: 3,
        dtype: 'f32',
      }),
    );
    await saveModel(folder, model, { maxShardBytes: 900_000 });
    expect((await folder.list()).length).toBeGreaterThan(3);
    const { model: loaded, family } = await loadModel(folder, backend);
    expect(family).toBe('asa');
    for (const [name, tensor] of model.parameters) {
      const other = loaded.parameters.get(name);
      expect(other && (await backend.read(other.storage))).toEqual(
        await backend.read(tensor.storage),
      );
    }
  });

  it('rounds to bf16 and f16 when asked, on disk and on the device', async () => {
    const small = preset('tiny', { layers: 1, pattern: 'L' });
    const model = new Model(
      backend,
      small,
      await initialParameters(backend, small, { seed: 3, dtype: 'f32' }),
    );
    await saveModel(folder, model, { dtype: 'bf16' });
    const { model: half } = await loadModel(folder, backend, { dtype: 'f16' });
    expect(half.dtype).toBe('f16');
    const { model: wide } = await loadModel(folder, backend, { dtype: 'f64' });
    const name = 'model.norm.weight';
    const norm = wide.parameters.get(name);
    expect(norm && (await backend.read(norm.storage))[0]).toBe(1);
  });

  it('cuts the merged tensors of DeepSeek, and joins them again', async () => {
    await config(deepseek);
    const model = await weights();
    const loaded = await loadModel(folder, backend);
    const values = new Map<string, Float32Array>();
    for (const [name, tensor] of loaded.model.parameters) {
      values.set(name, (await backend.read(tensor.storage)) as Float32Array);
    }
    const joined = toFamily(model, loaded.family, values);
    const up = joined.get('model.layers.0.self_attn.kv_b_proj.weight');
    // The tensors were filled with consecutive values: any mix-up would show.
    expect(up).toHaveLength(2 * (4 + 3) * 4);
    up?.forEach((value, i) => {
      expect(value - (up[0] ?? 0)).toBeCloseTo(i / 100, 4);
    });
    const keys = values.get('model.layers.0.self_attn.k_up_proj.weight');
    expect(keys?.[4 * 4]).toBe(up?.[(4 + 3) * 4]);
  });

  const wrong: [string, (t: NamedTensor) => NamedTensor[], RegExp][] = [
    [
      'a missing tensor',
      (t) => (t.name.includes('down_proj') ? [] : [t]),
      /"model.layers.0.mlp.down_proj.weight": is missing/,
    ],
    [
      'an extra tensor',
      (t) =>
        t.name === 'model.norm.weight' ? [t, { ...t, name: 'extra' }] : [t],
      /"extra": the model has no such tensor/,
    ],
    [
      'a transposed tensor',
      (t) =>
        t.name.includes('down_proj')
          ? [{ ...t, shape: [...t.shape].reverse() }]
          : [t],
      /must be \[8, 12\], got \[12, 8\]/,
    ],
    [
      'weights that are not numbers',
      (t) => [
        t.name === 'model.norm.weight'
          ? { ...t, data: new Float32Array(8).fill(Number.NaN) }
          : t,
      ],
      /"model.norm.weight": must hold finite numbers only/,
    ],
    [
      'integers',
      (t) => [
        t.name === 'model.norm.weight'
          ? { ...t, dtype: 'i32', data: new Int32Array(8) }
          : t,
      ],
      /must hold real numbers, got integers/,
    ],
  ];
  it.each(wrong)('refuses %s and keeps nothing', async (_, change, rule) => {
    await config(llama);
    await weights(change);
    const error = await loadModel(folder, backend).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(CheckpointError);
    expect((error as Error).message).toMatch(rule);
    expect(backend.memory().bytesInUse).toBe(0);
  });

  it('ignores a tied head and old rotary buffers', async () => {
    await config(llama);
    await weights((t) =>
      t.name === 'model.norm.weight'
        ? [
            t,
            { ...t, name: 'model.layers.0.self_attn.rotary_emb.inv_freq' },
            { ...t, name: 'lm_head.weight' },
          ]
        : [t],
    );
    await expect(loadModel(folder, backend)).resolves.toBeDefined();
  });

  it('stops when aborted, and reports progress', async () => {
    await config(llama);
    await weights();
    const seen: number[] = [];
    await loadModel(folder, backend, { onProgress: (n) => seen.push(n) });
    expect(seen).toEqual([...seen].sort((a, b) => a - b));
    const bytes = backend.memory().bytesInUse;
    const abort = new AbortController();
    const loading = loadModel(folder, backend, {
      signal: abort.signal,
      onProgress: (n) => n === 2 && abort.abort(),
    });
    await expect(loading).rejects.toThrow(/abort/i);
    expect(backend.memory().bytesInUse).toBe(bytes);
  });
});

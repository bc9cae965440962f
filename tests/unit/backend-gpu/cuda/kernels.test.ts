/**
 * Every kernel, compiled for the least card and for Hopper; by NVRTC too where
 * it is installed (`LD_LIBRARY_PATH` may name its folder). Registers are held
 * to a budget: more of them, or any that spill, make a kernel slower without a
 * word. `ASA_UPDATE_BUDGET=1` writes the budget anew.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, describe, expect, it } from 'vitest';
import {
  bind,
  compilerFunctions,
} from '../../../../packages/backend-gpu/src/cuda/bindings';
import { Compiler } from '../../../../packages/backend-gpu/src/cuda/compiler';
import { requestOf } from '../../../../packages/backend-gpu/src/cuda/functions';
import {
  headers,
  type KernelFile,
  sources,
} from '../../../../packages/backend-gpu/src/cuda/kernels/sources';
import {
  loadLibrary,
  nvrtcLibrary,
} from '../../../../packages/backend-gpu/src/cuda/libraries';
import { nvcc, nvccVersion, whyNoCompiler } from './toolkit';

interface Usage {
  registers: number;
  /** Bytes stored to local memory for want of registers. */
  spills: number;
}

const url = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const folder = url('../../../../packages/backend-gpu/src/cuda/kernels');
const cache = url('../../../../node_modules/.cache/asa-nvcc');
const budgetFile = url('kernel-budget.json');
const budget = JSON.parse(readFileSync(budgetFile, 'utf8')) as Record<
  string,
  Usage
>;
const isUpdate = process.env.ASA_UPDATE_BUDGET !== undefined;

/**
 * Files of Hopper's instructions are for it alone; of others one variant shows
 * what the least card makes of them.
 */
const architecturesOf = (file: KernelFile, variant: number) =>
  file.startsWith('hopper-') || variant > 0 ? ['90a'] : ['80', '90a'];
const wide = { WARPS: 4, N: 32, C: 128 };
const wider = { WARPS: 4, N: 64, C: 256 };
/** Tiles of attention in 16-bit types: grouped heads, and latent ones. */
const flash = { T: 'bf16', WARPS: 4, STAGES: 2, WIDTH: 128, VALUE: 128 };
const grouped = { ...flash, ROPE: 0, LATENT: 0 };
const latent = { ...flash, ROPE: 64, LATENT: 1 };
/** Latent keys of widths that fill no whole tiles. */
const narrow = { ...latent, WIDTH: 56, ROPE: 32, VALUE: 56 };
const dense = { VIEW: 'ATTENTION', BLOCK: 1 };
/** Two warpgroups that compute and one that copies. */
const hopper = { WARPS: 12, ROWS: 128, N: 128, UNIT: 16 };
const nsa = { VIEW: 'SELECTED', BLOCK: 64 };
/** Sixteen rows a list: of one query, of two, of four. */
const parts = [
  { ...grouped, ...nsa, UNIT: 16, SHARING: 1 },
  { ...latent, ...nsa, UNIT: 8, SHARING: 2 },
  { ...narrow, ...nsa, UNIT: 4, SHARING: 4 },
];
const asa = { VIEW: 'SELECTED', BLOCK: 16 };
/** Lists as masks of a walk over all keys. */
const masks = { VIEW: 'MASKED', BLOCK: 1 };
/** What each file is compiled for here; one storage type unless it matters. */
const variants: Record<KernelFile, readonly Record<string, unknown>[]> = {
  adamw: [{ T: 'f32', G: 'bf16', R: 'bf16', MOST: 64 }],
  add: [{ T: 'bf16' }],
  'attention-backward-keys': [
    { T: 'bf16', VIEW: 'SELECTED', ...wide },
    { T: 'f32', VIEW: 'ATTENTION', ...wide },
  ],
  'attention-backward-queries': [
    { T: 'bf16', VIEW: 'SELECTED', ...wide, C: 256 },
    { T: 'f32', VIEW: 'COMPRESSED', ...wide },
    { T: 'f32', VIEW: 'COMPRESSED', ...wide, PLUS: 1 },
  ],
  'attention-forward': [
    { T: 'bf16', VIEW: 'SELECTED', ...wider },
    { T: 'f16', VIEW: 'ATTENTION', ...wider, C: 64 },
    { T: 'f32', VIEW: 'COMPRESSED', ...wider, C: 128 },
    { T: 'f32', VIEW: 'ATTENTION', WARPS: 1, N: 32, C: 128, SPLIT: 1 },
  ],
  'attention-parts': [{ T: 'bf16' }],
  cast: [{ X: 'f32', Y: 'bf16' }],
  'choose-blocks': [{ HELD: 0 }, { HELD: 32 }, { HELD: 128 }],
  'choose-few': [
    { HELD: 8, BLOCK_STRIDES: 1, LENGTH_STRIDES: 1 },
    { HELD: 2, BLOCK_STRIDES: 4, LENGTH_STRIDES: 2 },
    { HELD: 32, BLOCK_STRIDES: 1, LENGTH_STRIDES: 1 },
    { HELD: 0, BLOCK_STRIDES: 4, LENGTH_STRIDES: 2 },
  ],
  'column-sum': [{ T: 'bf16' }],
  compress: [{ T: 'bf16' }],
  'cross-entropy': [{ T: 'bf16' }],
  'few-rows': [
    { T: 'bf16', ROWS: 1, COLUMNS: 1, HELD: 4 },
    { T: 'bf16', ROWS: 1, COLUMNS: 1, HELD: 11 },
    { T: 'bf16', ROWS: 1, COLUMNS: 2, HELD: 4 },
    { T: 'f16', ROWS: 1, COLUMNS: 2, HELD: 6 },
    { T: 'bf16', ROWS: 2, COLUMNS: 1, HELD: 6 },
    { T: 'bf16', ROWS: 2, COLUMNS: 2, HELD: 4 },
    { T: 'bf16', ROWS: 3, COLUMNS: 2, HELD: 4 },
    { T: 'bf16', ROWS: 4, COLUMNS: 1, HELD: 4 },
    { T: 'bf16', ROWS: 4, COLUMNS: 2, HELD: 4 },
    { T: 'f16', ROWS: 4, COLUMNS: 2, HELD: 4 },
  ].map((form) => ({ ...form, MOST: 8 })),
  fill: [{}],
  'flash-backward-blocks': [
    {
      ...{ ...grouped, ...nsa, UNIT: 16, SHARING: 1, ROWS: 64, N: 64 },
      ...{ BLOCKS: 2, ITEM: 128 },
    },
  ].flatMap((form) => [form, { ...form, PLUS: 1 }]),
  'flash-backward-keys': [
    { ...grouped, ...dense, UNIT: 16, SHARING: 1, ROWS: 64, N: 32, BLOCKS: 2 },
    { ...grouped, ...nsa, UNIT: 16, SHARING: 1, ROWS: 64, N: 32, BLOCKS: 2 },
    { ...latent, ...dense, UNIT: 16, SHARING: 1, ROWS: 64, N: 32, BLOCKS: 2 },
    { ...latent, ...asa, UNIT: 16, SHARING: 4, ROWS: 16, N: 64, BLOCKS: 2 },
    { ...narrow, ...dense, UNIT: 4, SHARING: 1, ROWS: 64, N: 32, BLOCKS: 2 },
    { ...narrow, ...asa, UNIT: 4, SHARING: 4, ROWS: 16, N: 64, BLOCKS: 3 },
  ],
  'flash-backward-lists': [
    { ...latent, ...asa, UNIT: 16, SHARING: 4, ROWS: 64, N: 64, BLOCKS: 2 },
    { ...grouped, ...asa, UNIT: 16, SHARING: 4, ROWS: 64, N: 64, BLOCKS: 2 },
    {
      ...{ ...latent, ...asa, UNIT: 16, SHARING: 4, ROWS: 64, N: 64 },
      ...{ BLOCKS: 2, PLUS: 1 },
    },
  ],
  'flash-backward-queries': [
    { ...grouped, ...dense, ROWS: 128, N: 32, BLOCKS: 2 },
    { ...grouped, ...nsa, ROWS: 16, N: 64, BLOCKS: 3 },
    { ...latent, ...dense, ROWS: 64, N: 64, BLOCKS: 2 },
    { ...latent, ...asa, ROWS: 64, N: 64, BLOCKS: 2 },
    { ...narrow, ...dense, ROWS: 128, N: 32, BLOCKS: 2 },
    { ...narrow, ...asa, ROWS: 16, N: 64, BLOCKS: 4 },
    { ...grouped, ...dense, ROWS: 128, N: 32, BLOCKS: 2, PLUS: 1 },
  ],
  'flash-forward': [
    { ...grouped, ...dense, ROWS: 128, N: 64, BLOCKS: 2 },
    { ...grouped, ...nsa, ROWS: 16, N: 64, BLOCKS: 3 },
    { ...latent, ...dense, ROWS: 128, N: 64, BLOCKS: 2 },
    { ...latent, ...dense, LATENT: 0, ROWS: 128, N: 32, BLOCKS: 2 },
    { ...latent, ...asa, ROWS: 64, N: 64, BLOCKS: 3 },
    { ...latent, ...asa, ROWS: 16, N: 64, BLOCKS: 3 },
    { ...narrow, ...dense, ROWS: 128, N: 64, BLOCKS: 2 },
    { ...narrow, ...asa, ROWS: 16, N: 64, BLOCKS: 4 },
    { ...grouped, ...dense, ROWS: 16, N: 64, BLOCKS: 2, STAGES: 3, SPLIT: 1 },
    { ...latent, ...dense, ROWS: 16, N: 64, BLOCKS: 2, STAGES: 3, SPLIT: 1 },
    { ...latent, ...dense, ROWS: 64, N: 64, BLOCKS: 3, SPLIT: 1 },
    { ...latent, ...dense, ROWS: 128, N: 64, BLOCKS: 2, SPLIT: 1 },
    { ...latent, ...asa, ROWS: 16, N: 64, BLOCKS: 3, SPLIT: 1 },
    {
      ...{ ...grouped, ...dense, WIDTH: 256, VALUE: 256 },
      ...{ ROWS: 64, N: 64, BLOCKS: 1 },
    },
  ],
  'flash-forward-blocks': parts.map((form) => ({
    ...{ ...form, STAGES: 1, ITEM: 16, ROWS: 128, N: 64, BLOCKS: 3 },
  })),
  'flash-forward-union': [
    {
      ...{ ...grouped, ...nsa, UNIT: 16, SHARING: 1, WARPS: 8, STAGES: 6 },
      ...{ ROWS: 128, N: 64, BLOCKS: 1 },
    },
  ],
  'flash-importance': [
    {
      ...{ ...grouped, VIEW: 'COMPRESSED', BLOCK: 1, LATENT: 1, VALUE: 16 },
      ...{ ROWS: 128, N: 64, BLOCKS: 3, HEAD_TILES: 1 },
      ...{ BLOCK_STRIDES: 4, LENGTH_STRIDES: 2 },
    },
    {
      ...{ ...latent, VIEW: 'COMPRESSED', BLOCK: 1, VALUE: 16 },
      ...{ ROWS: 128, N: 64, BLOCKS: 2, HEAD_TILES: 2 },
      ...{ BLOCK_STRIDES: 1, LENGTH_STRIDES: 1 },
    },
    {
      ...{ ...narrow, VIEW: 'COMPRESSED', BLOCK: 1, VALUE: 16 },
      ...{ ROWS: 128, N: 64, BLOCKS: 3, HEAD_TILES: 1 },
      ...{ BLOCK_STRIDES: 1, LENGTH_STRIDES: 1 },
    },
  ],
  'forward-items': [
    { BLOCK: 64, ITEM: 16, OWN: 0 },
    { BLOCK: 64, ITEM: 128, OWN: 1 },
  ],
  'gated-sum': [
    { T: 'bf16', LANES: 8, WHOLE: 1 },
    { T: 'bf16', LANES: 16, BRANCHES: 3, WHOLE: 1 },
    { T: 'bf16', LANES: 16, BRANCHES: 3, WHOLE: 0 },
  ],
  'gather-rows-backward': [{ T: 'bf16' }],
  'hopper-backward': [
    { ...grouped, ...dense, BULK: 0 },
    { ...grouped, ...dense, VIEW: 'COMPRESSED', BULK: 1 },
    { ...grouped, ...dense, WIDTH: 64, VALUE: 64, UNIT: 3, BULK: 1 },
    ...[0, 1].map((LATENT) => ({
      ...{ ...grouped, ...dense, WIDTH: 64, ROPE: 32, VALUE: 64 },
      ...{ UNIT: 1, LATENT, BULK: LATENT },
    })),
    { ...narrow, ...dense, UNIT: 4, BULK: 0 },
    { ...narrow, ...masks, UNIT: 4, SHARING: 4, BULK: 1 },
    { ...grouped, ...masks, UNIT: 16, SHARING: 1, BULK: 1 },
    {
      ...{ ...latent, ...masks, WIDTH: 64, ROPE: 32, VALUE: 64 },
      ...{ UNIT: 2, SHARING: 2, BULK: 1 },
    },
  ].map((form) => ({ ...hopper, ...form, WARPS: 12, STAGES: 4, N: 64 })),
  'hopper-backward-blocks': [
    { ...grouped, ...nsa, UNIT: 16, SHARING: 1 },
    { ...grouped, ...nsa, UNIT: 16, SHARING: 4 },
    {
      ...{ ...latent, ...nsa, WIDTH: 64, ROPE: 32, VALUE: 64, STAGES: 3 },
      ...{ UNIT: 8, SHARING: 4 },
    },
    { ...grouped, ...nsa, WIDTH: 80, ROPE: 48, UNIT: 4, SHARING: 4 },
  ].map((form) => ({
    ...{ ...form, WARPS: 8, ROWS: 64, N: 64, BLOCKS: 2, ITEM: 128 },
  })),
  'hopper-backward-keys': [
    { ...grouped, ...dense, ...hopper, STAGES: 3, N: 64 },
    { ...grouped, ...hopper, STAGES: 3, N: 64, VIEW: 'COMPRESSED', BLOCK: 1 },
    { ...latent, ...dense, ...hopper, STAGES: 3, N: 32 },
    { ...latent, ...dense, ...hopper, LATENT: 0, STAGES: 3, N: 32, UNIT: 1 },
    {
      ...{ ...grouped, ...dense, ...hopper, STAGES: 3, N: 96 },
      ...{ WIDTH: 64, ROPE: 32, VALUE: 64, UNIT: 1 },
    },
  ],
  'hopper-backward-queries': [
    { ...grouped, ...dense, ...hopper, N: 112 },
    { ...grouped, ...hopper, N: 112, VIEW: 'COMPRESSED', BLOCK: 1 },
    { ...latent, ...dense, ...hopper, STAGES: 3, N: 80 },
    { ...latent, ...dense, ...hopper, LATENT: 0, N: 80, UNIT: 1 },
    {
      ...{ ...grouped, ...dense, ...hopper, STAGES: 3, N: 112 },
      ...{ WIDTH: 64, ROPE: 32, VALUE: 64, UNIT: 1 },
    },
    { ...grouped, ...dense, ...hopper, N: 112, PLUS: 1 },
    { ...latent, ...dense, ...hopper, STAGES: 3, N: 80, PLUS: 1 },
  ],
  'hopper-decode': [
    { ...grouped, ...dense, CLUSTER: 1, SPLIT: 1 },
    { ...latent, ...dense, CLUSTER: 1, SPLIT: 1, ONCE: 1 },
    { ...latent, ...dense, CLUSTER: 1, SPLIT: 0, ONCE: 1 },
    { ...latent, ...dense, CLUSTER: 8, SPLIT: 0 },
    { ...grouped, ...nsa, CLUSTER: 8, SPLIT: 0 },
    // Local layers of the 340m preset, its global ones.
    { ...latent, ...dense, WIDTH: 224, ROPE: 32, VALUE: 224, CLUSTER: 8 },
    { ...narrow, ...asa, UNIT: 4, CLUSTER: 8 },
    { ...narrow, VIEW: 'COMPRESSED', BLOCK: 1, UNIT: 4, CLUSTER: 1, SPLIT: 1 },
    { ...grouped, ...dense, WIDTH: 256, VALUE: 256, CLUSTER: 8, BLOCKS: 1 },
    {
      ...{ ...latent, ...dense, WIDTH: 64, ROPE: 0, VALUE: 64 },
      ...{ CLUSTER: 8, STAGES: 3 },
    },
  ].map((form) => ({
    ...{ WARPS: 4, ROWS: 16, N: 64, STAGES: 2, BLOCKS: 2, UNIT: 16, SPLIT: 0 },
    ...{ KEY_UNITS: 1, LIST_UNITS: 1, LENGTH: 16, STRIDE: 16, ONCE: 0 },
    ...form,
  })),
  'hopper-forward': [
    { ...grouped, ...dense, ...hopper },
    { ...grouped, ...dense, ...hopper, N: 176 },
    { ...grouped, ...hopper, VIEW: 'COMPRESSED', BLOCK: 1 },
    { ...latent, ...dense, ...hopper, STAGES: 3 },
    { ...latent, ...dense, ...hopper, LATENT: 0, UNIT: 1 },
    {
      ...{ ...grouped, ...dense, ...hopper },
      ...{ WIDTH: 64, ROPE: 32, VALUE: 64, UNIT: 1 },
    },
    {
      ...{ ...narrow, ...hopper, STAGES: 3, UNIT: 4 },
      ...{ VIEW: 'COMPRESSED', BLOCK: 1 },
    },
    { ...narrow, ...hopper, ...masks, STAGES: 3, UNIT: 4, SHARING: 4 },
    { ...grouped, ...hopper, ...masks, UNIT: 16, SHARING: 1 },
    { ...latent, ...hopper, ...masks, STAGES: 3, UNIT: 3, SHARING: 2 },
  ].map((form) => ({
    ...form,
    // Rotary columns begin with a chunk, a tile has whole queries.
    BOXED:
      (form.ROPE === 0 || form.WIDTH % 64 === 0) && 128 % form.UNIT === 0
        ? 1
        : 0,
  })),
  'hopper-forward-blocks': [
    ...parts,
    { ...latent, ...nsa, LATENT: 0, UNIT: 6, SHARING: 2 },
  ].map((form) => ({
    ...{ ...form, ...hopper, WARPS: 16, ROWS: 192, N: 64, ITEM: 128 },
    ...{ UNIT: form.UNIT, STAGES: 4, KEY_STAGES: 3, OWN: 1 },
  })),
  'hopper-importance': [
    { ...grouped, LEADER_ROWS: 16, QUERY_STAGES: 2 },
    { ...grouped, STAGES: 4, LEADER_ROWS: 16, QUERY_STAGES: 1 },
    { ...latent, LEADER_ROWS: 16, QUERY_STAGES: 1 },
    { ...latent, LEADER_ROWS: 8, QUERY_STAGES: 1 },
    { ...narrow, LEADER_ROWS: 4, QUERY_STAGES: 2 },
  ].map((form) => ({
    ...{ ...form, ...hopper, WARPS: 20, ROWS: 256, LATENT: 1, VALUE: 16 },
    ...{ UNIT: form.LEADER_ROWS, VIEW: 'COMPRESSED', BLOCK: 1 },
    ...{ BLOCK_STRIDES: 4, LENGTH_STRIDES: 2 },
  })),
  'join-lists': parts.map((form, i) => ({
    ...{ ...form, STAGES: 1, ITEM: 16, ROWS: 128, N: 64, BLOCKS: 3 },
    OWN: i === 0 ? 1 : 0,
  })),
  'linear-attention': [
    { T: 'bf16', PLACES: 16 },
    { T: 'f32', PLACES: 64 },
  ],
  'rms-norm': [
    { T: 'bf16', LANES: 32, HELD: 4 },
    { T: 'bf16', LANES: 32, HELD: 4, PLUS: 1 },
    { T: 'bf16', LANES: 32, HELD: 8, PLUS: 1 },
    { T: 'f32', LANES: 32, HELD: 4, PLUS: 1 },
    { T: 'bf16', LANES: 32, HELD: 8 },
    { T: 'f32', LANES: 32, HELD: 4 },
    { T: 'bf16', LANES: 8, HELD: 1 },
    { T: 'bf16', LANES: 8, HELD: 1, FEW: 1 },
    { T: 'bf16', LANES: 32, HELD: 4, FEW: 1 },
    { T: 'bf16', LANES: 32, HELD: 8, FEW: 1 },
    { T: 'f32', LANES: 32, HELD: 4, FEW: 1 },
  ],
  rope: [{ T: 'bf16', MOST: 4 }],
  rows: [
    { T: 'bits16', MOST: 4 },
    { T: 'bits128', MOST: 4 },
  ],
  sample: [{ T: 'f32' }],
  'select-blocks': [{ T: 'bf16' }, { T: 'f32' }],
  'squared-norm': [{ T: 'bf16', MOST: 128 }],
  swiglu: [{ T: 'bf16' }],
  'transpose-heads': [{ T: 'bf16' }],
};

const cases = Object.entries(variants).flatMap(([file, list]) =>
  list.map((defines, variant) => {
    const words = Object.entries(defines).map(([k, v]) => `${k}=${v}`);
    const name = [file, ...words].join(' ');
    const architectures = architecturesOf(file as KernelFile, variant);
    return [name, file as KernelFile, words, architectures] as const;
  }),
);

const reason = whyNoCompiler();

describe.skipIf(reason)(`CUDA kernels under nvcc ${reason ?? ''}`, () => {
  const written: Record<string, Usage> = {};
  const version = nvccVersion();

  afterAll(() => {
    if (!isUpdate) return;
    const sorted = Object.entries(written).sort(([a], [b]) => (a < b ? -1 : 1));
    const text = JSON.stringify(Object.fromEntries(sorted), null, 2);
    writeFileSync(budgetFile, `${text}\n`);
  });

  it.each(cases)('%s', { timeout: 300_000 }, async (name, ...compiled) => {
    const text = await report(compiled, version);
    // Products of warpgroups that the compiler makes wait for one another.
    expect(text).not.toMatch(/Potential Performance Loss/);
    const usage = parse(text);
    expect(Object.keys(usage).length).toBeGreaterThan(0);
    for (const [entry, { registers, spills }] of Object.entries(usage)) {
      const key = `${name} ${entry}`;
      written[key] = { registers, spills };
      if (isUpdate) continue;
      const allowed = budget[key];
      expect(allowed, `no budget for ${key}`).toBeDefined();
      expect(registers, key).toBeLessThanOrEqual(allowed?.registers ?? 0);
      expect(spills, key).toBeLessThanOrEqual(allowed?.spills ?? 0);
    }
  });
});

/** The driver's own compiler, where the machine has it: what a card is given. */
const atRunTime = runTimeCompiler();
if (atRunTime) {
  describe('CUDA kernels under NVRTC', () => {
    it.each(cases)('%s', { timeout: 300_000 }, (_, file, words) => {
      const defines = Object.fromEntries(words.map((word) => word.split('=')));
      const capability = file.startsWith('hopper-') ? 90 : 80;
      const request = requestOf(file, defines, capability);
      expect(atRunTime.compile(request).length).toBeGreaterThan(0);
    });
  });
}

function runTimeCompiler(): Compiler | undefined {
  try {
    const load = (path: string) => bind(path, compilerFunctions);
    return new Compiler(loadLibrary(nvrtcLibrary, load).functions);
  } catch {
    return undefined;
  }
}

it('names a variant for every file', () => {
  expect(Object.keys(variants).sort()).toEqual(Object.keys(sources).sort());
});

/** What ptxas says; kept by all that it depends on, as compiling takes long. */
async function report(
  compiled: readonly [KernelFile, readonly string[], readonly string[]],
  version: string,
): Promise<string> {
  const [file, ...rest] = compiled;
  const parts = [version, sources[file], headers, ...rest];
  const hash = createHash('sha256').update(JSON.stringify(parts));
  const kept = join(cache, `${hash.digest('hex')}.txt`);
  if (existsSync(kept)) return readFileSync(kept, 'utf8');
  const text = await compile(...compiled);
  mkdirSync(cache, { recursive: true });
  writeFileSync(kept, text);
  return text;
}

async function compile(
  file: KernelFile,
  words: readonly string[],
  architectures: readonly string[],
): Promise<string> {
  const output = mkdtempSync(join(tmpdir(), 'asa-nvcc-'));
  try {
    const { stdout, stderr } = await promisify(execFile)(nvcc ?? 'nvcc', [
      '-fatbin',
      '-std=c++17',
      '-Werror=all-warnings',
      ...architectures.map(
        (arch) => `-gencode=arch=compute_${arch},code=sm_${arch}`,
      ),
      ...words.map((word) => `-D${word}`),
      '-Xptxas=-v',
      '-o',
      join(output, 'kernel.fatbin'),
      join(folder, `${file}.cu`),
    ]);
    return stdout + stderr;
  } finally {
    rmSync(output, { recursive: true });
  }
}

/** Usage by `entry sm_X`. */
function parse(text: string): Record<string, Usage> {
  const usage: Record<string, Usage> = {};
  let entry = '';
  let spills = 0;
  for (const line of text.split('\n')) {
    const named = line.match(/Compiling entry function '(\w+)' for '(\w+)'/);
    if (named) entry = `${named[1]} ${named[2]}`;
    const spilled = line.match(/(\d+) bytes spill stores/);
    if (spilled) spills = Number(spilled[1]);
    const used = line.match(/Used (\d+) registers/);
    if (used) usage[entry] = { registers: Number(used[1]), spills };
  }
  return usage;
}

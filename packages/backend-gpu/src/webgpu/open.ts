/// <reference types="@webgpu/types" />
import { ArgumentError, UnsupportedError } from '@asa/core';
import { checkKnownAnswer } from '../known-answer';
import { loadGpu } from './loader';
import {
  emulatedUnit,
  type MatrixUnit,
  matrixFeature,
  matrixUnitOf,
} from './matrix-unit';
import { WebGpuBackend } from './webgpu-backend';

export interface WebGpuOptions {
  /** Bytes that device buffers may take; what the device gives when missing. */
  readonly limitBytes?: number;
  /** New memory holds NaN (-2^31 in i32), so that tests see it being read. */
  readonly poison?: boolean;
  /** Take no software adapter. */
  readonly hardwareOnly?: boolean;
  /**
   * What multiplies f16: the subgroups' matrix units, or plain kernels. The
   * units where the device has them, when missing.
   */
  readonly matrices?: 'subgroup' | 'plain';
  /**
   * The same for attention. `emulated` is plain code in the units' place, slow:
   * for tests on any device, in f32 too.
   */
  readonly attention?: 'subgroup' | 'plain' | 'emulated';
  /**
   * Tiles of attention and of matrix products. Small ones compile fast, large
   * ones compute fast; small on software adapters when missing.
   */
  readonly tiles?: 'small' | 'large';
  /**
   * Dawn checks every access to a buffer, as browsers always do. Kernels keep
   * their own bounds, and are faster without.
   */
  readonly boundsChecks?: boolean;
  /** Other than `navigator.gpu` or Dawn. */
  readonly gpu?: GPU;
}

/** What there is to open. */
export interface AdapterReport {
  /** The adapter in words. */
  readonly description: string;
  /** Computes on the CPU. */
  readonly isSoftware: boolean;
  readonly features: readonly string[];
  readonly limits: Readonly<Record<string, number>>;
  /** Fewest and most threads of a subgroup, where the adapter says so. */
  readonly subgroupSizes?: readonly [least: number, most: number];
  /** What multiplies f16 matrices on it: the subgroups' units or plain kernels. */
  readonly matrixPath: 'subgroup' | 'plain';
  /** Why they are plain. */
  readonly noMatrixUnits?: string;
}

/** A device, what it is of, and how long it took. */
export interface Opened {
  readonly backend: WebGpuBackend;
  readonly openMs: number;
  /** Time of the known-answer check. */
  readonly checkMs: number;
}

/**
 * Opens a WebGPU device with all that its adapter has: a hardware adapter if
 * there is one.
 * @throws UnsupportedError without an adapter, without the matrix units that
 * were asked for, or where the first product that the device computes is wrong.
 */
export async function openWebGpu(
  options: WebGpuOptions = {},
): Promise<WebGpuBackend> {
  return (await openTimed(options)).backend;
}

/** `openWebGpu`, with what it took. */
export async function openTimed(options: WebGpuOptions): Promise<Opened> {
  const start = performance.now();
  const backend = await openUnchecked(options);
  const opened = performance.now();
  try {
    await checkKnownAnswer(backend);
  } catch (error) {
    await backend.destroy();
    throw error;
  }
  const checked = performance.now();
  return { backend, openMs: opened - start, checkMs: checked - opened };
}

/** What `openWebGpu` would take; throws as it does. */
export async function explainWebGpu(
  options: WebGpuOptions = {},
): Promise<AdapterReport> {
  const gpu = options.gpu ?? (await loadGpu(options.boundsChecks));
  return describe(gpu, await findAdapter(gpu, options));
}

/** Every adapter that the loader gives, hardware or not. */
export async function listAdapters(
  options: Pick<WebGpuOptions, 'gpu'> = {},
): Promise<AdapterReport[]> {
  const gpu = options.gpu ?? (await loadGpu());
  const found = new Map<string, AdapterReport>();
  for (const request of requests) {
    const adapter = await gpu.requestAdapter(request);
    const report = adapter && describe(gpu, adapter);
    if (report) found.set(report.description, report);
  }
  return [...found.values()];
}

async function openUnchecked(options: WebGpuOptions): Promise<WebGpuBackend> {
  const { limitBytes = Number.POSITIVE_INFINITY, poison = false } = options;
  if (!(limitBytes >= 0)) {
    throw new ArgumentError(
      `webgpu: limitBytes must be a number of at least 0, got ${limitBytes}`,
    );
  }
  const gpu = options.gpu ?? (await loadGpu(options.boundsChecks));
  const adapter = await findAdapter(gpu, options);
  const { matrices, attention } = options;
  const matrixUnit = chooseUnit(gpu, adapter, matrices);
  const attentionUnit =
    attention === 'emulated'
      ? emulatedUnit(adapter)
      : chooseUnit(gpu, adapter, attention);
  const device = await adapter.requestDevice({
    requiredFeatures: wantedFeatures.filter((name) =>
      adapter.features.has(name),
    ) as GPUFeatureName[],
    requiredLimits: limitsOf(adapter),
  });
  const { words, isSoftware } = wordsOf(adapter);
  return new WebGpuBackend(device, words, {
    limitBytes,
    poison,
    matrixUnit,
    attentionUnit,
    smallTiles: options.tiles ? options.tiles === 'small' : isSoftware,
  });
}

function chooseUnit(
  gpu: GPU,
  adapter: GPUAdapter,
  wanted: WebGpuOptions['matrices'],
): MatrixUnit | undefined {
  if (wanted === 'plain') return undefined;
  const unit = matrixUnitOf(adapter, gpu.wgslLanguageFeatures);
  if (typeof unit !== 'string') return unit;
  if (wanted === undefined) return undefined;
  throw new UnsupportedError('open', 'webgpu', `no matrix units, ${unit}`);
}

const wantedFeatures: readonly string[] = [
  'shader-f16',
  'subgroups',
  'timestamp-query',
  matrixFeature,
];

/** All that the adapter has, of what kernels ask for. */
const wantedLimits = [
  'maxBufferSize',
  'maxStorageBufferBindingSize',
  'maxStorageBuffersPerShaderStage',
  'maxComputeWorkgroupStorageSize',
  'maxComputeInvocationsPerWorkgroup',
  'maxComputeWorkgroupSizeX',
] as const;

function limitsOf({ limits }: GPUAdapter): Record<string, number> {
  return Object.fromEntries(wantedLimits.map((name) => [name, limits[name]]));
}

async function findAdapter(
  gpu: GPU,
  options: WebGpuOptions,
): Promise<GPUAdapter> {
  const passed: string[] = [];
  let software: GPUAdapter | undefined;
  for (const request of requests) {
    const adapter = await gpu.requestAdapter(request);
    if (!adapter) continue;
    const { isSoftware, words } = wordsOf(adapter);
    if (!isSoftware) return adapter;
    software ??= adapter;
    passed.push(`passed over ${words}`);
  }
  if (software && !options.hardwareOnly) return software;
  const reason = passed[0] ?? 'the loader found no adapter';
  throw new UnsupportedError('open', 'webgpu', `no GPU, ${reason}`);
}

/** The ways to ask for an adapter, best first. */
const requests: readonly GPURequestAdapterOptions[] = [
  { powerPreference: 'high-performance' },
  { powerPreference: 'low-power' },
  { forceFallbackAdapter: true },
];

function describe(gpu: GPU, adapter: GPUAdapter): AdapterReport {
  const { words, isSoftware } = wordsOf(adapter);
  const { info, features } = adapter;
  const { subgroupMinSize: least, subgroupMaxSize: most } = info;
  const unit = matrixUnitOf(adapter, gpu.wgslLanguageFeatures);
  return {
    description: words,
    isSoftware,
    features: [...features].sort(),
    limits: limitsOf(adapter),
    ...(least && most && { subgroupSizes: [least, most] as const }),
    ...(typeof unit === 'string'
      ? { matrixPath: 'plain', noMatrixUnits: unit }
      : { matrixPath: 'subgroup' }),
  };
}

/** An adapter in words, and whether it computes on the CPU. */
export function wordsOf({ info }: GPUAdapter): {
  words: string;
  isSoftware: boolean;
} {
  const words = [info.vendor, info.architecture, info.device, info.description]
    .filter((word) => word)
    .join(' ');
  const isSoftware =
    info.isFallbackAdapter === true ||
    /swiftshader|llvmpipe|lavapipe|warp|basic render/i.test(words);
  return {
    words: `${words || 'WebGPU'}${isSoftware ? ', software' : ''}`,
    isSoftware,
  };
}

/// <reference types="@webgpu/types" />
import { ArgumentError, UnsupportedError } from '@asa/core';
import { checkKnownAnswer } from './known-answer';
import { loadGpu } from './loader';
import { type MatrixUnit, matrixFeature, matrixUnitOf } from './matrix-unit';
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
  const { limitBytes = Number.POSITIVE_INFINITY, poison = false } = options;
  if (!(limitBytes >= 0)) {
    throw new ArgumentError(
      `webgpu: limitBytes must be a number of at least 0, got ${limitBytes}`,
    );
  }
  const gpu = options.gpu ?? (await loadGpu());
  const adapter = await findAdapter(gpu, options);
  const matrixUnit = chooseUnit(gpu, adapter, options);
  const device = await adapter.requestDevice({
    requiredFeatures: wantedFeatures.filter((name) =>
      adapter.features.has(name),
    ) as GPUFeatureName[],
    requiredLimits: limitsOf(adapter),
  });
  const { description } = describe(adapter);
  const backend = new WebGpuBackend(device, description, {
    limitBytes,
    poison,
    matrixUnit,
  });
  try {
    await checkKnownAnswer(backend);
  } catch (error) {
    await backend.destroy();
    throw error;
  }
  return backend;
}

/** What `openWebGpu` would take; throws as it does. */
export async function explainWebGpu(
  options: WebGpuOptions = {},
): Promise<AdapterReport> {
  const gpu = options.gpu ?? (await loadGpu());
  return describe(await findAdapter(gpu, options));
}

function chooseUnit(
  gpu: GPU,
  adapter: GPUAdapter,
  { matrices }: WebGpuOptions,
): MatrixUnit | undefined {
  if (matrices === 'plain') return undefined;
  const unit = matrixUnitOf(adapter, gpu.wgslLanguageFeatures);
  if (typeof unit !== 'string') return unit;
  if (matrices === undefined) return undefined;
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
  const requests: readonly GPURequestAdapterOptions[] = [
    { powerPreference: 'high-performance' },
    {},
    { forceFallbackAdapter: true },
  ];
  let software: GPUAdapter | undefined;
  for (const request of requests) {
    const adapter = await gpu.requestAdapter(request);
    if (!adapter) continue;
    const { isSoftware, description } = describe(adapter);
    if (!isSoftware) return adapter;
    software ??= adapter;
    passed.push(`passed over ${description}`);
  }
  if (software && !options.hardwareOnly) return software;
  const reason = passed[0] ?? 'the loader found no adapter';
  throw new UnsupportedError('open', 'webgpu', `no GPU, ${reason}`);
}

function describe(adapter: GPUAdapter): AdapterReport {
  const { info, features } = adapter;
  const words = [info.vendor, info.architecture, info.device, info.description]
    .filter((word) => word)
    .join(' ');
  const isSoftware =
    info.isFallbackAdapter === true ||
    /swiftshader|llvmpipe|lavapipe|warp|basic render/i.test(words);
  return {
    description: `${words || 'WebGPU'}${isSoftware ? ', software' : ''}`,
    isSoftware,
    features: [...features].sort(),
    limits: limitsOf(adapter),
  };
}

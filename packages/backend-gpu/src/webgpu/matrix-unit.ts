/// <reference types="@webgpu/types" />

/**
 * What a subgroup multiplies at once: f16 `[m, k]` by `[k, n]` into f32
 * `[m, n]`.
 */
export interface MatrixUnit {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  /** Threads of a subgroup, the same for every kernel. */
  readonly subgroupSize: number;
  /** Memory of a workgroup on the device. */
  readonly workgroupBytes: number;
  /** In plain code: slow, so that kernels can be tried on every device. */
  readonly isEmulated?: boolean;
}

/** Not in the standard yet: matrix products of a subgroup. */
export const matrixFeature = 'chromium-experimental-subgroup-matrix';

/** `GPUSubgroupMatrixConfig` of the experimental feature. */
interface MatrixConfig {
  readonly componentType: string;
  readonly resultComponentType: string;
  readonly M: number;
  readonly N: number;
  readonly K: number;
}

/** Tiles are laid out in units of at most this extent. */
export const LARGEST = 16;

/** Workgroup memory and subgroups of the largest kernel. */
const MOST_BYTES = 49_152;
const MOST_SUBGROUPS = 8;

/** The unit that kernels can use on an adapter, or why there is none. */
export function matrixUnitOf(
  { features, info, limits }: Pick<GPUAdapter, 'features' | 'info' | 'limits'>,
  languageFeatures: ReadonlySet<string>,
): MatrixUnit | string {
  for (const name of [matrixFeature, 'subgroups', 'shader-f16']) {
    if (!features.has(name)) return `the device lacks ${name}`;
  }
  if (!languageFeatures.has('subgroup_id')) return 'WGSL lacks subgroup_id';
  const { subgroupMinSize: least, subgroupMaxSize: most } = info;
  if (least === undefined || least !== most) {
    return `subgroups have ${least} to ${most} threads`;
  }
  const { maxComputeWorkgroupStorageSize: bytes } = limits;
  if (bytes < MOST_BYTES) return `workgroups have ${bytes} bytes of memory`;
  const { maxComputeInvocationsPerWorkgroup: threads } = limits;
  if (threads < MOST_SUBGROUPS * most)
    return `workgroups have ${threads} threads`;
  const { subgroupMatrixConfigs = [] } = info as {
    readonly subgroupMatrixConfigs?: Iterable<MatrixConfig>;
  };
  for (const config of subgroupMatrixConfigs) {
    const { componentType, resultComponentType, M, N, K } = config;
    const fits = [M, N, K].every((extent) => LARGEST % extent === 0);
    if (componentType === 'f16' && resultComponentType === 'f32' && fits) {
      return { m: M, n: N, k: K, subgroupSize: most, workgroupBytes: bytes };
    }
  }
  return 'no configuration multiplies f16 into f32';
}

/** What devices without matrix units try the kernels with. */
export const emulatedUnit = ({
  limits,
}: Pick<GPUAdapter, 'limits'>): MatrixUnit => ({
  m: LARGEST,
  n: LARGEST,
  k: LARGEST,
  subgroupSize: 32,
  workgroupBytes: limits.maxComputeWorkgroupStorageSize,
  isEmulated: true,
});

import type { ProbeReport } from './gpu-probe';
import type { VulkanFiles } from './vulkan-files';

/** What is known of a machine and its GPU. */
export interface GpuFacts {
  readonly platform: NodeJS.Platform;
  /** Why no device file of a GPU is there; nothing where one is. */
  readonly noDevice: string | undefined;
  readonly vulkan: VulkanFiles;
  readonly webgpu: ProbeReport;
}

/** The usual fixes that fit, the most likely first; none where all is well. */
export function gpuAdvice(facts: GpuFacts): string[] {
  return rules.flatMap((rule) => rule(facts) ?? []);
}

type Rule = (facts: GpuFacts) => string | undefined;

const rules: readonly Rule[] = [
  ({ noDevice, platform }) =>
    platform === 'linux' && noDevice
      ? `${noDevice}: in a container, start it with the GPU (docker run --gpus all, or --device /dev/dri)`
      : undefined,
  (facts) =>
    lacksDevice(facts) && !loaderOf(facts)
      ? 'no Vulkan loader was found: install it (Debian and Ubuntu: apt-get install libvulkan1; Fedora: dnf install vulkan-loader)'
      : undefined,
  (facts) =>
    lacksDevice(facts) && facts.vulkan.drivers.length === 0
      ? "no Vulkan driver file (ICD) was found: install the GPU's driver (mesa-vulkan-drivers, or NVIDIA's own)"
      : undefined,
  (facts) =>
    lacksDevice(facts) && !facts.noDevice && !hasNvidia(facts.vulkan)
      ? "with an NVIDIA GPU in a container, set NVIDIA_DRIVER_CAPABILITIES=all: without 'graphics' its Vulkan driver stays outside"
      : undefined,
  ({ vulkan }) => {
    const broken = vulkan.drivers.find(({ flaw }) => flaw);
    return broken && `${broken.path}: ${broken.flaw}; correct or remove it`;
  },
  (facts) =>
    lacksDevice(facts) && !facts.vulkan.runtimeFolder
      ? 'XDG_RUNTIME_DIR is not set, and some drivers need it: set it to a folder of your own'
      : undefined,
  ({ webgpu }) => {
    const slow = webgpu.adapters.find(
      ({ isSoftware, features }) =>
        !isSoftware && !features.includes('shader-f16'),
    );
    return (
      slow &&
      `${slow.description} offers no f16: update its driver; in a program of your own that makes the WebGPU instance, enable Dawn's vulkan_enable_f16_on_nvidia`
    );
  },
];

/** Elsewhere there is no Vulkan to look into. */
const lacksDevice = ({ platform, webgpu }: GpuFacts) =>
  platform === 'linux' && webgpu.device === undefined;

const hasNvidia = ({ drivers }: VulkanFiles) =>
  drivers.some(({ library = '' }) => /nvidia/i.test(library));

/** The loader that was loaded, else the one that would be. */
export function loaderOf({
  webgpu,
  vulkan,
}: Pick<GpuFacts, 'webgpu' | 'vulkan'>): string | undefined {
  const isLoader = (path: string) => /\/libvulkan\.so/.test(path);
  return webgpu.libraries.find(isLoader) ?? vulkan.loaders[0];
}

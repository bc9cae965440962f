import { constants } from 'node:fs';
import { access } from 'node:fs/promises';
import { availableParallelism, freemem, totalmem } from 'node:os';
import type { CudaReport } from '@asa/backend-gpu/cuda';
import { Command } from '@commander-js/extra-typings';
import { version } from '../../package.json';
import { reasonOf } from '../backends';
import { gpuAdvice, loaderOf } from '../gpu-advice';
import { type ProbeReport, probeWebGpu, whyNoGpu } from '../gpu-probe';
import { defaultConfigFile, embeddedModel } from '../paths';
import {
  colors,
  formatBytes,
  formatNumber,
  print,
  printJson,
} from '../terminal';
import { type VulkanFiles, vulkanFiles } from '../vulkan-files';

export const command = new Command('doctor')
  .description('Says which backends work on this machine, and why not.')
  .option('--json', 'print JSON')
  .addHelpText('after', '\nExample:\n  asa doctor')
  .action(async ({ json, ...options }) => {
    const configFile = (options as { configFile?: string }).configFile;
    const report = await examine(configFile ?? defaultConfigFile());
    if (json) printJson(report);
    else printReport(report);
  });

type DoctorReport = Awaited<ReturnType<typeof examine>>;

async function examine(configFile: string | undefined) {
  const { platform } = process;
  const [noDevice, vulkan, webgpu, cuda] = await Promise.all([
    whyNoGpu(),
    vulkanFiles(),
    probeWebGpu({ adapters: true }),
    examineCuda(),
  ]);
  return {
    version,
    node: process.version,
    platform: `${platform} ${process.arch}`,
    cores: availableParallelism(),
    memory: { free: freemem(), total: totalmem() },
    configuration: await pathReport(configFile),
    model: await pathReport(embeddedModel),
    backends: [
      webGpuReport(webgpu),
      await cpuReport(),
      cudaReport(cuda),
      ...(await libraryReports(webgpu)),
    ],
    webgpu,
    cuda,
    ...(platform === 'linux' && { vulkan }),
    advice: gpuAdvice({ platform, noDevice, vulkan, webgpu }),
  };
}

interface BackendReport {
  readonly name: string;
  readonly available: boolean;
  /** The device where it is available, else the reason why it is not. */
  readonly detail: string;
}

function webGpuReport({ device, reason = '' }: ProbeReport): BackendReport {
  const available = device !== undefined;
  return { name: 'webgpu', available, detail: device ?? reason };
}

/** What there is of CUDA, or why it cannot be used. */
async function examineCuda(): Promise<CudaReport | { reason: string }> {
  const { explainCuda } = await import('@asa/backend-gpu/cuda');
  return explainCuda().catch((error: unknown) => ({
    reason: reasonOf(error),
  }));
}

function cudaReport(
  cuda: Awaited<ReturnType<typeof examineCuda>>,
): BackendReport {
  return 'reason' in cuda
    ? { name: 'cuda', available: false, detail: cuda.reason }
    : { name: 'cuda', available: true, detail: cuda.description };
}

/** Ways in which a library computes, each with the reason why not here. */
type Ways = readonly { readonly name: string; readonly reason?: string }[];

/** The way that a library would take, and those before it. */
function libraryReport(name: string, library: string, ways: Ways) {
  const taken = ways.findIndex(({ reason }) => reason === undefined);
  const available = taken >= 0;
  const before = available ? ways.slice(0, taken) : ways;
  const parts = [
    ...(available ? [`${library}, ${ways[taken]?.name}`] : []),
    ...before.map(({ name, reason }) => `passed over ${name}: ${reason}`),
  ];
  return { name, available, detail: parts.join('; ') };
}

/** Another process has tried WebGPU already: its word counts here. */
async function libraryReports({
  device,
  reason = 'no GPU',
}: ProbeReport): Promise<BackendReport[]> {
  const { explainTfjs } = await import('@asa/backend-gpu/tfjs');
  const { explainGpuJs } = await import('@asa/backend-gpu/gpujs');
  const offer = async () => {
    if (device === undefined) throw new Error(reason);
  };
  const host = { offer };
  return [
    libraryReport('tfjs', 'TensorFlow.js', await explainTfjs({ host })),
    libraryReport('gpujs', 'gpu.js', await explainGpuJs({ host })),
  ];
}

async function cpuReport(): Promise<BackendReport> {
  const { openCpu } = await import('@asa/backend-cpu');
  const backend = await openCpu();
  await backend.destroy();
  return { name: 'cpu', available: true, detail: backend.description };
}

interface PathReport {
  readonly path: string | undefined;
  readonly found: boolean;
}

async function pathReport(path: string | undefined): Promise<PathReport> {
  if (path === undefined) return { path, found: false };
  const found = await access(path, constants.R_OK).then(
    () => true,
    () => false,
  );
  return { path, found };
}

const { bold, green, red } = colors(process.stdout);

const line = (name: string, text: string) =>
  print(`${bold(name.padEnd(14))} ${text}`);

function printReport(report: DoctorReport): void {
  const { free, total } = report.memory;
  line('asa', report.version);
  line('node', `${report.node}, ${report.platform}, ${report.cores} cores`);
  line('memory', `${formatBytes(free)} free of ${formatBytes(total)}`);
  line('configuration', describe(report.configuration));
  line('model', describe(report.model));
  for (const { name, available, detail } of report.backends) {
    const mark = available ? green('available') : red('not available');
    line(`backend ${name}`, `${mark}: ${detail}`);
  }
  if (report.vulkan) printVulkan(report.vulkan, report.webgpu);
  printWebGpu(report.webgpu);
  if (!('reason' in report.cuda)) printCuda(report.cuda);
  for (const advice of report.advice) line('advice', advice);
}

function printVulkan(vulkan: VulkanFiles, webgpu: ProbeReport): void {
  line('Vulkan loader', loaderOf({ vulkan, webgpu }) ?? 'none was found');
  for (const [name, value] of Object.entries(vulkan.variables)) {
    line('variable', `${name}=${value}`);
  }
  for (const { path, library, flaw } of vulkan.drivers) {
    line('driver', `${path}: ${flaw ?? library}`);
  }
  if (vulkan.drivers.length === 0) line('driver', 'no driver file was found');
}

/** Features that decide which kernels run. */
const features = ['shader-f16', 'subgroups', 'timestamp-query'] as const;

function printWebGpu({ adapters, openMs, checkMs }: ProbeReport): void {
  for (const adapter of adapters) {
    const { limits, subgroupSizes: sizes } = adapter;
    line('adapter', adapter.description);
    const has = (name: string) =>
      `${adapter.features.includes(name) ? '' : 'no '}${name}`;
    const threads = sizes
      ? `, subgroups of ${[...new Set(sizes)].join(' to ')}`
      : '';
    line('', `${features.map(has).join(', ')}${threads}`);
    const { matrixPath, noMatrixUnits } = adapter;
    const why = noMatrixUnits ? ` (${noMatrixUnits})` : '';
    line('', `f16 products, of attention too: ${matrixPath}${why}`);
    const size = (name: string) => formatBytes(limits[name] ?? 0);
    line(
      '',
      `bindings to ${size('maxStorageBufferBindingSize')}, buffers to ${size('maxBufferSize')}, workgroup memory ${size('maxComputeWorkgroupStorageSize')}`,
    );
  }
  if (openMs === undefined || checkMs === undefined) return;
  const ms = formatNumber(checkMs);
  line('known answer', `right, ${ms} ms; ${formatNumber(openMs)} ms to open`);
}

function printCuda({ libraries, compilerVersion, cacheFolder }: CudaReport) {
  for (const [name, path] of Object.entries(libraries)) {
    const version = name === 'nvrtc' ? ` (${compilerVersion})` : '';
    line(`CUDA's ${name}`, `${path}${version}`);
  }
  line('CUDA kernels', `are kept in ${cacheFolder}`);
}

function describe({ path, found }: PathReport): string {
  if (path === undefined) return 'no home folder to look in';
  return found ? path : `${path} (not there)`;
}

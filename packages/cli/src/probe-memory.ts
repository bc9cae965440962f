import { mkdir, readFile, stat, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { version } from '../package.json';
import { probeWebGpu } from './gpu-probe';
import { vulkanFiles } from './vulkan-files';

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Why WebGPU cannot be used here; nothing when it can. Another process tries
 * it, once: what worked is remembered until the machine, the driver files or
 * the program change. What failed is tried again.
 */
export async function whyNotWebGpu(
  env: Environment = process.env,
  probe = probeWebGpu,
): Promise<string | undefined> {
  const path = memoryPath(env);
  const state = await stateOf(env);
  const remembered = await readFile(path, 'utf8').catch(() => undefined);
  if (remembered === state) return undefined;
  const { reason } = await probe();
  if (reason !== undefined) return reason;
  await mkdir(dirname(path), { recursive: true })
    .then(() => writeFile(path, state))
    // Without a folder to write to, the next start tries again.
    .catch(() => {});
  return undefined;
}

function memoryPath({ XDG_CACHE_HOME }: Environment): string {
  const base = XDG_CACHE_HOME || join(homedir(), '.cache');
  return join(base, 'asa', 'webgpu-works');
}

/** All that decides whether the device opens, in one text. */
async function stateOf(env: Environment): Promise<string> {
  // A new kernel driver comes with a new start of the machine.
  const boot = await readFile('/proc/sys/kernel/random/boot_id', 'utf8').catch(
    () => '',
  );
  const { loaders, drivers, variables } = await vulkanFiles(env);
  const paths = [...loaders, ...drivers.map(({ path }) => path)];
  const times = await Promise.all(
    paths.map((path) =>
      stat(path).then(
        ({ mtimeMs }) => `${path} ${mtimeMs}`,
        () => path,
      ),
    ),
  );
  const parts = [version, process.version, boot.trim(), times, variables];
  return JSON.stringify(parts);
}

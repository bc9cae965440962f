import { access, readdir, readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';

/** A driver as the Vulkan loader finds it: a JSON file that names a library. */
interface VulkanDriver {
  readonly path: string;
  /** Its `ICD.library_path`. */
  readonly library?: string;
  /** What is wrong with the file. */
  readonly flaw?: string;
}

/** What the Vulkan loader goes by. */
export interface VulkanFiles {
  /** Loaders (`libvulkan.so.1`) in the usual folders, first found first. */
  readonly loaders: readonly string[];
  /** Variables that say where drivers are, where they are set. */
  readonly variables: Readonly<Record<string, string>>;
  readonly drivers: readonly VulkanDriver[];
  /** `XDG_RUNTIME_DIR`, which some drivers need. */
  readonly runtimeFolder: string | undefined;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** These replace the folders; the first is the newer name of the second. */
const replacing = ['VK_DRIVER_FILES', 'VK_ICD_FILENAMES'] as const;
const adding = 'VK_ADD_DRIVER_FILES';

/**
 * The driver files that the loader reads on Linux, in its order. Source: "Driver
 * discovery" of the Vulkan loader's LoaderDriverInterface.md.
 */
export async function vulkanFiles(
  env: Environment = process.env,
  home = homedir(),
): Promise<VulkanFiles> {
  const variables = Object.fromEntries(
    [...replacing, adding].flatMap((name) => {
      const value = env[name];
      return value ? [[name, value]] : [];
    }),
  );
  const named = replacing.map((name) => env[name]).find((value) => value);
  const places = [
    ...split(env[adding]),
    ...(named ? split(named) : driverFolders(env, home)),
  ];
  const paths = (await Promise.all(places.map(filesOf))).flat();
  return {
    loaders: await loaders(env),
    variables,
    drivers: await Promise.all(paths.map(readDriver)),
    runtimeFolder: env.XDG_RUNTIME_DIR || undefined,
  };
}

function driverFolders(env: Environment, home: string): string[] {
  const bases = [
    env.XDG_CONFIG_HOME || join(home, '.config'),
    ...split(env.XDG_CONFIG_DIRS || '/etc/xdg'),
    '/usr/local/etc',
    '/etc',
    env.XDG_DATA_HOME || join(home, '.local/share'),
    ...split(env.XDG_DATA_DIRS || '/usr/local/share:/usr/share'),
  ];
  return bases.map((base) => join(base, 'vulkan/icd.d'));
}

const triples: Readonly<Record<string, string>> = {
  x64: 'x86_64-linux-gnu',
  arm64: 'aarch64-linux-gnu',
};

async function loaders(env: Environment): Promise<string[]> {
  const folders = [
    ...split(env.LD_LIBRARY_PATH),
    `/usr/lib/${triples[process.arch]}`,
    '/usr/lib64',
    '/usr/lib',
    '/usr/local/lib',
  ];
  const paths = folders.map((folder) => join(folder, 'libvulkan.so.1'));
  const found = await Promise.all(paths.map(exists));
  return paths.filter((_, i) => found[i]);
}

const split = (list = '') => list.split(':').filter((part) => part !== '');

/** The JSON files of a folder, or a file by itself, there or not. */
async function filesOf(place: string): Promise<string[]> {
  if (place.endsWith('.json')) return [place];
  const names = await readdir(place).catch(() => []);
  return names
    .filter((name) => name.endsWith('.json'))
    .sort()
    .map((name) => join(place, name));
}

async function readDriver(path: string): Promise<VulkanDriver> {
  try {
    const { ICD } = JSON.parse(await readFile(path, 'utf8')) as {
      readonly ICD?: { readonly library_path?: string };
    };
    const library = ICD?.library_path;
    if (!library) return { path, flaw: 'it names no library' };
    // Others are looked for where the system keeps its libraries.
    const isPath = library.startsWith('/');
    const isThere = !isPath || (await exists(library));
    return { path, library, ...(!isThere && { flaw: 'its library is gone' }) };
  } catch (error) {
    const flaw = error instanceof Error ? error.message : String(error);
    return { path, flaw };
  }
}

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );

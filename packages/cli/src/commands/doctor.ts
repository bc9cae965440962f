import { constants } from 'node:fs';
import { access } from 'node:fs/promises';
import { availableParallelism, freemem, totalmem } from 'node:os';
import { Command } from '@commander-js/extra-typings';
import { version } from '../../package.json';
import { type BackendEntry, backends } from '../backends';
import { defaultConfigFile, embeddedModel } from '../paths';
import { colors, formatBytes, print, printJson } from '../terminal';

export const command = new Command('doctor')
  .description('Says which backends work on this machine, and why not.')
  .option('--json', 'print JSON')
  .addHelpText('after', '\nExample:\n  asa doctor')
  .action(async ({ json, ...options }) => {
    const configFile = (options as { configFile?: string }).configFile;
    const report = {
      version,
      node: process.version,
      platform: `${process.platform} ${process.arch}`,
      cores: availableParallelism(),
      memory: { free: freemem(), total: totalmem() },
      configuration: await pathReport(configFile ?? defaultConfigFile()),
      model: await pathReport(embeddedModel),
      backends: await Promise.all(backends.map(backendReport)),
    };
    if (json) printJson(report);
    else printReport(report);
  });

interface BackendReport {
  readonly name: string;
  readonly available: boolean;
  /** The device where it is available, else the reason why it is not. */
  readonly detail: string;
}

async function backendReport(entry: BackendEntry): Promise<BackendReport> {
  const { name } = entry;
  try {
    const reason = await entry.explain();
    if (reason) return { name, available: false, detail: reason };
    const backend = await entry.open();
    const detail = backend.description;
    await backend.destroy();
    return { name, available: true, detail };
  } catch (error) {
    const detail = error instanceof Error ? error.message : String(error);
    return { name, available: false, detail };
  }
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

function printReport(report: {
  version: string;
  node: string;
  platform: string;
  cores: number;
  memory: { free: number; total: number };
  configuration: PathReport;
  model: PathReport;
  backends: readonly BackendReport[];
}): void {
  const { bold, green, red } = colors(process.stdout);
  const line = (name: string, text: string) =>
    print(`${bold(name.padEnd(14))} ${text}`);
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
}

function describe({ path, found }: PathReport): string {
  if (path === undefined) return 'no home folder to look in';
  return found ? path : `${path} (not there)`;
}
